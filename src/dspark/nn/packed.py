"""Frozen linear layers in layouts made for few rows: the fast path of a CPU.

``torch.nn.functional.linear`` hands fp32 products of few rows to a general matrix product that re-reads and re-orders
the weight at every call; a weight re-ordered once costs far less, and one that fits into half precision less again
(docs/lab_log.md). The same sums in another order: results agree with ``linear`` to fp32 rounding,
or, where that is asked for, to that of bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dspark.kernels.machine import can_compile
from dspark.kernels.tiles import Tiles, can_tile, fits
from dspark.kernels.whole import Wholes
from dspark.nn.forms import smallest
from dspark.nn.panels import Panels

# The layout is chosen by oneDNN for this many rows; 64 was the best or equal best from 1 to 64 rows.
ROWS_HINT = 64


class PackedLinear(nn.Module):
    """A frozen ``y = x W^T + b`` whose weight lives in oneDNN's own layout; not differentiable, not saveable."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PanelLinear(nn.Module):
    """A frozen ``y = x W^T + b``: fp32, its weight in panels of the smallest form that holds it exactly, or as rows
    that are rounded meet it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.panels: Panels | Tiles | Wholes = smallest(weight, None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``; TypeError for another dtype, which only rounded rows may have."""
        product = self.panels(x.reshape(-1, self.in_features))
        return product.view(*x.shape[:-1], self.out_features)

    @property
    def rounds(self) -> torch.dtype | None:
        """What rows are rounded to; None where they are not."""
        if isinstance(self.panels, Panels):
            return None
        return torch.bfloat16 if isinstance(self.panels, Tiles) else torch.int16

    def round(self, rows: torch.dtype) -> None:
        """From now on round rows, where the hardware has instructions for it: to bfloat16, as the weight is, half the
        work of fp32 or less; or to int16, whole numbers in groups of 32, which a weight that is in blocks meets as it
        is.
        """
        panels = self.panels
        if not isinstance(panels, Panels):
            return
        if rows != torch.bfloat16:
            self.panels = panels.wholes() or panels
        elif fits(self.in_features) and can_tile():
            kept = panels.weight() if (blocks := panels.blocks()) is None else blocks
            self.panels = Tiles(kept, panels.bias, panels.outputs)

    def extra_repr(self) -> str:
        """Shape and form."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.panels.name}"


def can_pack(weight: Tensor) -> bool:
    """Whether this weight can be packed here: fp32 on a CPU whose torch was built with oneDNN."""
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def frozen_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """The product with a frozen weight in the fastest exact way there is for it."""
    if can_pack(weight):
        return PanelLinear(weight, bias) if can_compile() else PackedLinear(weight, bias)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


class JoinedProduct:
    """Several products of the same rows as one: a call costs as much again as a small weight's bytes.

    Modules ask for their own parts one after another; the first computes all, and what is kept is dropped with the
    last. Rows are known by identity, so that parts of other rows are never mixed up.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        biases = [each.bias for each in linears]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        self.product = frozen_linear(torch.cat([each.weight.detach() for each in linears]), bias)
        self._widths = [each.out_features for each in linears]
        self._held: tuple[Tensor, dict[int, Tensor]] | None = None

    def part(self, index: int, x: Tensor) -> Tensor:
        """The product of ``x`` with the weight of that number."""
        held = self._held  # one read and one write of the pair: another thread's rows can't come between
        if held is None or held[0] is not x or index not in held[1]:
            held = (x, dict(enumerate(self.product(x).split(self._widths, dim=-1))))
        part = held[1].pop(index)
        self._held = held if held[1] else None
        return part


class JoinedLinear(nn.Module):
    """One of the products of a ``JoinedProduct``."""

    def __init__(self, joined: JoinedProduct, index: int, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.joined, self._index = joined, index

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``, a view of the joined result."""
        return self.joined.part(self._index, x)


# Projections of one parent that read the same rows, in the families that name them so.
_SAME_ROWS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_linears(module: nn.Module) -> int:
    """Replace packable projections of the same rows by parts of one product; returns how many products are saved."""
    saved = 0
    for parent in list(module.modules()):
        for names in _SAME_ROWS:
            linears = [child for name in names if type(child := getattr(parent, name, None)) is nn.Linear]
            alike = {(each.in_features, each.bias is None) for each in linears}
            if len(linears) < len(names) or len(alike) > 1 or not all(can_pack(each.weight) for each in linears):
                continue
            joined = JoinedProduct(linears)
            for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
                setattr(parent, name, JoinedLinear(joined, index, linear))
            saved += len(names) - 1
    return saved


def pack_linears(module: nn.Module) -> int:
    """Replace every packable ``nn.Linear`` below ``module`` in place by ``frozen_linear``; returns how many.

    For inference only: the originals are dropped, so the weights can't be trained or saved afterwards.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_pack(child.weight):
                setattr(parent, name, frozen_linear(child.weight, child.bias))
                replaced += 1
    return replaced


def round_products(module: nn.Module, rows: torch.dtype) -> None:
    """Let every frozen product below ``module`` round its rows (``PanelLinear.round``)."""
    for each in frozen_products(module):
        if isinstance(each, PanelLinear):
            each.round(rows)


def rounded_rows(module: nn.Module) -> torch.dtype | None:
    """What any product below ``module`` rounds its rows to; None where none does."""
    products = (each for each in frozen_products(module) if isinstance(each, PanelLinear))
    return next((each.rounds for each in products if each.rounds is not None), None)


def exact_products(module: nn.Module) -> int:
    """How many products below ``module`` can't round rows, whose inputs come in no groups of 32."""
    return sum(not fits(each.in_features) for each in frozen_products(module))


def frozen_products(module: nn.Module) -> list[nn.Linear | PackedLinear | PanelLinear]:
    """Every product below ``module`` in the form it has there, joined ones once."""
    kinds = (nn.Linear, PackedLinear, PanelLinear)
    modules = list(module.modules())
    modules += [each.joined.product for each in modules if isinstance(each, JoinedLinear)]
    return [each for each in dict.fromkeys(modules) if isinstance(each, kinds)]


def bytes_by_form(module: nn.Module) -> dict[str, int]:
    """Bytes of the frozen products' weights, by form ("float32", "int4" and so on), the largest first."""
    found: dict[str, int] = {}
    for each in frozen_products(module):
        if isinstance(each, PanelLinear):
            form, size = each.panels.name, each.panels.nbytes
        else:
            weight = each.packed if isinstance(each, PackedLinear) else each.weight
            assert isinstance(weight, Tensor)
            form, size = str(weight.dtype).removeprefix("torch."), weight.numel() * weight.element_size()
        found[form] = found.get(form, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))
