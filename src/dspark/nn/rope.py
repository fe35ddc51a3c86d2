"""Rotary position embedding, half-split form: element i of a head is rotated together with element i + D/2.

Legend: D head size, N heads; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dspark.nn.precision import narrowed


class Rotary(NamedTuple):
    """Cosines and sines of the angles at some positions, fp32, both ``[..., 1, D/2]`` (the 1 stands for the
    heads).
    """

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Angles ``position * theta^(-2i/D)`` for ``positions [...]`` (integers)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None, None].float() * (1.0 / theta**exponents)
    return Rotary(angles.cos(), angles.sin())


class RotationTable:
    """``cos + i sin``, complex ``[T, 1, D/2]``, of the angles at some positions: computed once, then read.

    ``compute`` gives them for positions ``int64 [n]``, each by itself. The table grows with the positions asked for.
    """

    _FIRST = 1024

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._table = torch.empty(0)

    def at(self, positions: Sequence[int], positions_T: Tensor | None = None) -> Tensor:
        """Of ``positions``, at least one; ``positions_T``: the same as a tensor on the table's device, if there is one
        (None: on a CPU).
        """
        table, first, last = self._table, positions[0], max(positions)
        if last >= len(table):
            rows, device = max(self._FIRST, 1 << last.bit_length()), None if positions_T is None else positions_T.device
            with torch.inference_mode(False), torch.no_grad():  # kept, and read in either mode
                table = self._table = self._compute(torch.arange(rows, device=device))
        if positions == [*range(first, last + 1)]:  # of one request
            return table[first : last + 1]
        return table.index_select(0, torch.tensor(positions) if positions_T is None else positions_T)


def rotate(x: Tensor, at: Rotary) -> Tensor:
    """Rotate ``x [..., N, D]`` to the positions of ``at``; in fp32, returned in the dtype of ``x`` (under autocast in
    fp32).
    """
    turned: Any = _Turn.apply  # untyped in torch
    return narrowed(turned(x.float(), at.cos, at.sin), x)


class _Turn(torch.autograd.Function):
    """A rotation in few operations; its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad_outputs[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for half, along, across in zip(out.chunk(2, dim=-1), (first, second), (-(second * sin), first * sin), strict=True):
        torch.addcmul(across, along, cos, out=half)
    return out
