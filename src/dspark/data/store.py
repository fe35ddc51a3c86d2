"""Tensors that are kept for good, in memory of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Bytes of a piece: more than a system's allocator takes from its heap.
PIECE = 128 << 20
_ALIGNED = 64


class Store:
    """Tensors one behind the other in large pieces of memory, at most ``size`` bytes of them (a piece more is taken).

    Among what comes and goes in every step each of them would keep a hole from closing: a training process grew by six
    times what it kept (docs/lab_log.md).
    """

    def __init__(self, size: float) -> None:
        self._left = size
        self._piece = torch.empty(0, dtype=torch.uint8)  # what is left of the last one

    def keep(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """Copies of ``tensors``, or None where there is no room for all of them."""
        sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors]
        if sum(sizes) > self._left:
            return None
        self._left -= sum(sizes)
        if sum(sizes) > len(self._piece):
            self._piece = torch.empty(max(PIECE, sum(sizes)), dtype=torch.uint8, device=tensors[0].device)
        *places, self._piece = self._piece.split([*sizes, len(self._piece) - sum(sizes)])
        return [
            place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            for place, tensor in zip(places, tensors, strict=True)
        ]
