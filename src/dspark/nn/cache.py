"""Keys and values of a model's layers in blocks.

Legend: N blocks, H key/value heads, D head size, T tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable


@dataclass(frozen=True)
class KVLayer:
    """Key/value heads and head size of one decoder layer, and the layer whose keys and values it reads."""

    heads: int
    head_dim: int
    source: int


class KVCache:
    """Preallocated ``[H, N*size, D]`` tensors per layer; who holds which block is written in block tables elsewhere.

    Keys and values of a layer are the halves of one tensor, so that a step's can be written at once.

    A layer that reads an earlier one's keys and values has that one's tensors.
    """

    def __init__(
        self,
        layers: Sequence[KVLayer],
        blocks: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        exact: bool = True,
    ) -> None:
        """``exact``: what a token sees of it is to be the same to the bit in any company, where kernels give that."""
        if blocks < 1 or size < 1:
            raise UserError(f"a cache of {blocks} blocks of {size} positions was asked for; both must be at least 1")
        self.blocks, self.size, self.exact = blocks, size, exact
        self._layers = list(layers)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._both: list[Tensor] = []
        for index, layer in enumerate(layers):
            if layer.source != index:
                both = self._both[layer.source]
            else:
                both = torch.zeros(2 * layer.heads, blocks * size, layer.head_dim, dtype=dtype, device=device)
            self._both.append(both)
            self.keys.append(both[: layer.heads])
            self.values.append(both[layer.heads :])

    @property
    def bytes(self) -> int:
        """Memory of all layers."""
        return sum(both.nbytes for layer, both in enumerate(self._both) if self.owns(layer))

    def tables(self) -> list[BlockTable]:
        """A table for each block: as many requests as there are blocks, none longer than one."""
        return [BlockTable([block]) for block in range(self.blocks)]

    def store(self, layer: int, rows_T: Tensor, key_HTD: Tensor, value_HTD: Tensor) -> None:
        """Write one step's keys and values, rounded to the cache's dtype, at ``rows_T``, unless the layer reads
        another's.
        """
        if not self.owns(layer):
            return
        self.keys[layer].index_copy_(1, rows_T, key_HTD.to(self.keys[layer].dtype))
        self.values[layer].index_copy_(1, rows_T, value_HTD.to(self.values[layer].dtype))

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeros: what is masked is multiplied with nothing, and nothing times NaN is not nothing."""
        for index, both in enumerate(self._both):
            if self.owns(index):
                both.unflatten(1, (self.blocks, self.size))[:, blocks] = 0

    def mend(self, blocks: Sequence[int]) -> None:
        """Zeros for what is no number in these blocks."""
        for index, both in enumerate(self._both):
            if self.owns(index):
                mine = both.unflatten(1, (self.blocks, self.size))
                mine[:, blocks] = mine[:, blocks].nan_to_num(0.0, 0.0, 0.0)

    def both(self, layer: int) -> Tensor:
        """Keys and values ``[2 H, N*size, D]`` of a layer, the values behind the keys."""
        return self._both[layer]

    def owns(self, layer: int) -> bool:
        """Whether the layer has keys and values of its own."""
        return self._layers[layer].source == layer
