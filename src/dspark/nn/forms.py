"""The smallest form in which a weight loses nothing, found from its numbers alone.

A quantised checkpoint that was de-quantised still has few distinct numbers in every block. So its blocks are found
again, whatever way the weights took here, and a form is taken only where it gives every number back to the bit.

Legend: O outputs, I inputs, N outputs of a panel (``lanes``), P panels, G groups of 32 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.kernels.machine import lanes
from dspark.kernels.product import GROUP, Form
from dspark.nn.panels import Panels

_SAMPLE = 8  # outputs looked at before all are
_CHUNK = 4096  # outputs looked at together, so that a large weight is not held several times


def smallest(weight_OI: Tensor, bias_O: Tensor | None = None) -> Panels:
    """``weight_OI`` (fp32, on a CPU) in panels of the smallest form that holds it exactly.

    Nibbles are found where a block reaches both of its ends, as in files written without an importance matrix.
    """
    weight_OI = weight_OI.detach()
    for form in (Form.NIBBLE, Form.BYTE, Form.HALF, Form.BRAIN):
        if _parts(form, weight_OI[:_SAMPLE]) and (parts := _whole(form, weight_OI)):
            return _panels(form, *parts, bias_O)
    return _panels(Form.FLOAT, weight_OI, [], bias_O)


def in_blocks(weight_OI: Tensor) -> bool:
    """Whether blocks of 4 or 8 bits hold this weight (fp32, on a CPU) exactly."""
    forms = (Form.NIBBLE, Form.BYTE)
    return any(_parts(form, weight_OI[:_SAMPLE]) and _whole(form, weight_OI) for form in forms)


def rounded_to_bytes(weight_OI: Tensor) -> Tensor:
    """The nearest weight that bytes in groups of 32 hold: ``d * q`` with ``d`` a 127th of the group's largest.

    Unchanged where the inputs don't divide into groups.
    """
    if weight_OI.shape[1] % GROUP:
        return weight_OI
    groups_OGK = weight_OI.unflatten(1, (-1, GROUP))
    scale_OG1 = (groups_OGK.abs().amax(-1, keepdim=True) / 127).half().float()
    counts_OGK = (groups_OGK / scale_OG1).nan_to_num_(0.0).round_().clamp_(-127, 127)
    rounded: Tensor = (counts_OGK * scale_OG1).flatten(1)
    return rounded


_Parts = tuple[Tensor, list[Tensor]]  # numbers [O, I] and, by group, scales [O, G]


def _whole(form: Form, weight_OI: Tensor) -> _Parts | None:
    """``_parts`` of all outputs, some at a time."""
    found: list[_Parts] = []
    for some in weight_OI.split(_CHUNK):
        parts = _parts(form, some)
        if parts is None:
            return None
        found.append(parts)
    numbers, scales = zip(*found, strict=True)
    return torch.cat(numbers), [torch.cat(each) for each in zip(*scales, strict=True)]


def _parts(form: Form, weight_OI: Tensor) -> _Parts | None:
    """What ``form`` keeps of this weight; None where that is another weight."""
    if form in (Form.HALF, Form.BRAIN):
        narrow = weight_OI.to(torch.float16 if form is Form.HALF else torch.bfloat16)
        return (narrow, []) if torch.equal(narrow.float(), weight_OI) else None
    if weight_OI.shape[1] % GROUP:
        return None
    groups_OGK = weight_OI.unflatten(1, (-1, GROUP))
    return _bytes(groups_OGK) if form is Form.BYTE else _nibbles(groups_OGK)


def _bytes(groups_OGK: Tensor) -> _Parts | None:
    """Q8_0 counts to 127 for the largest of either sign, Q5_0 (and Q4_0 beside others) towards zero from it."""
    largest = _largest(groups_OGK)
    counts, scale = _steps(largest.abs() / 127, groups_OGK)
    for last in (-16, -8):
        wrong = (counts * scale != groups_OGK).any(-1, keepdim=True)
        other = _steps(largest / last, groups_OGK)
        counts, scale = (torch.where(wrong, b, a) for a, b in zip((counts, scale), other, strict=True))
    if not torch.equal(counts * scale, groups_OGK):
        return None
    return counts.flatten(1).to(torch.int8), [scale[..., 0]]


def _steps(scale: Tensor, groups_OGK: Tensor) -> tuple[Tensor, Tensor]:
    """Counts -127 to 127 of steps ``scale`` as half precision holds them."""
    scale = scale.half()
    return (groups_OGK / scale).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127), scale


def _largest(groups_OGK: Tensor) -> Tensor:
    """The number of each group that is the farthest from zero, with its sign."""
    least, most = groups_OGK.amin(-1, keepdim=True), groups_OGK.amax(-1, keepdim=True)
    return torch.where(most > -least, most, least)


def _nibbles(groups_OGK: Tensor) -> _Parts | None:
    """Either end of a block is known: Q4_1 counts up from the least, Q4_0 towards zero from the largest."""
    least, most = groups_OGK.amin(-1, keepdim=True), groups_OGK.amax(-1, keepdim=True)
    largest = _largest(groups_OGK)
    counts, scale, offset = _counted((most - least) / 15, least, groups_OGK)
    other = _counted(largest / -8, largest, groups_OGK)
    wrong = (counts * scale + offset != groups_OGK).any(-1, keepdim=True)
    counts, scale, offset = (torch.where(wrong, b, a) for a, b in zip((counts, scale, offset), other, strict=True))
    if not torch.equal(counts * scale + offset, groups_OGK):
        return None
    return counts.flatten(1).to(torch.uint8), [scale[..., 0].half(), offset[..., 0].half()]


def _counted(scale: Tensor, offset: Tensor, groups_OGK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts 0 to 15 of steps ``scale`` from ``offset``, both as half precision holds them; all in fp32."""
    scale, offset = scale.half().float(), offset.half().float()
    counts = ((groups_OGK - offset) / scale).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(0, 15)
    return counts, scale, offset


def _panels(form: Form, numbers_OI: Tensor, scales: list[Tensor], bias_O: Tensor | None = None) -> Panels:
    outputs, width = numbers_OI.shape
    weights_PIN = _by_panel(numbers_OI)
    if form is Form.NIBBLE:  # two inputs a byte, the earlier one low
        pairs = weights_PIN.unflatten(1, (-1, 2))
        weights_PIN = pairs[:, :, 0] | pairs[:, :, 1] << 4
    by_group = torch.stack([_by_panel(scale) for scale in scales], dim=2) if scales else None
    return Panels(form, weights_PIN.contiguous(), by_group, outputs, width, bias_O)


def _by_panel(numbers_OI: Tensor) -> Tensor:
    """``[O, I]`` to ``[P, I, N]``, outputs that are not there zero."""
    outputs, width = numbers_OI.shape
    padded = torch.nn.functional.pad(numbers_OI, (0, 0, 0, -outputs % lanes()))
    return padded.view(-1, lanes(), width).transpose(1, 2).contiguous()
