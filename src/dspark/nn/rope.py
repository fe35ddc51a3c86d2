"""Rotary position embedding, half-split form: element i of a head is rotated together with element i + D/2.

Legend: D head size, N heads; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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

    def at(self, positions_T: Tensor) -> Tensor:
        """Of ``positions_T`` (int64, not empty)."""
        table, last = self._table, int(positions_T.max())
        if last >= len(table):
            rows = max(self._FIRST, 1 << last.bit_length())
            with torch.inference_mode(False), torch.no_grad():  # kept, and read in either mode
                table = self._table = self._compute(torch.arange(rows, device=positions_T.device))
        return table.index_select(0, positions_T)


def rotate(x: Tensor, at: Rotary) -> Tensor:
    """Rotate ``x [..., N, D]`` to the positions of ``at``; in fp32, returned in the dtype of ``x`` (under autocast in
    fp32).
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * at.cos - second * at.sin, second * at.cos + first * at.sin)
    return narrowed(torch.cat(turned, dim=-1), x)
