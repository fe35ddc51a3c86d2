"""Keys and values of the target for a fixed number of slots, one request a slot.

Legend: N slots, S positions a slot, H key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.foundation.errors import UserError


@dataclass(frozen=True)
class KVLayer:
    """Key/value heads and head size of one decoder layer, and the layer whose keys and values it reads."""

    heads: int
    head_dim: int
    source: int


class KVCache:
    """Preallocated ``[N, S, H, D]`` tensors per layer; a slot's length moves up with tokens and back with
    rejections.

    A layer that reads an earlier one's keys and values has that one's tensors.
    """

    def __init__(
        self,
        layers: Sequence[KVLayer],
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if slots < 1 or capacity < 1:
            raise UserError(f"a cache of {slots} slots and {capacity} positions was asked for; both must be at least 1")
        self.capacity = capacity
        self._layers = list(layers)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for index, layer in enumerate(layers):
            for tensors in (self.keys, self.values):
                if layer.source == index:
                    tensors.append(
                        torch.zeros(slots, capacity, layer.heads, layer.head_dim, dtype=dtype, device=device)
                    )
                else:
                    tensors.append(tensors[layer.source])
        self.lengths = [0] * slots

    def truncate(self, slot: int, length: int) -> None:
        """Forget positions from ``length`` on (rejected drafts); the rows are overwritten by the next tokens."""
        assert 0 <= length <= self.lengths[slot], (length, self.lengths[slot])
        self.lengths[slot] = length

    def release(self, slot: int) -> None:
        """Empty a slot for the next request."""
        self.lengths[slot] = 0

    def store(self, layer: int, rows_T: Tensor, key_HTD: Tensor, value_HTD: Tensor) -> None:
        """Write one step's keys and values at flat rows ``slot * S + position``, unless the layer reads another's."""
        if self._layers[layer].source != layer:
            return
        for cache, new in ((self.keys[layer], key_HTD), (self.values[layer], value_HTD)):
            cache.view(-1, *cache.shape[2:]).index_copy_(0, rows_T, new.transpose(0, 1))
