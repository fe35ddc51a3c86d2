"""Keys and values of the committed context in one draft layer, and how a block attends to them and to itself.

Legend: B batch, A blocks of a sequence, K slots of a block, H key/value heads, G query heads of each, S context rows,
N rows of the block(s), D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dspark.nn.block_attention import attend
from dspark.nn.blocks import Plan
from dspark.nn.visibility import BlockGroup

KeysValues = tuple[Tensor, Tensor]

_FIRST_CAPACITY = 256


class Context(Protocol):
    """What an attention layer needs of its context."""

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """``[B, H, G, A, K, D]``: the blocks' queries over the rows that ``groups`` show them, and their own blocks."""
        ...


class ContextRows(NamedTuple):
    """A context computed at once, differentiable: ``k`` (normed and rotated) and ``v``, ``[B, H, S, D]``."""

    k: Tensor
    v: Tensor

    @property
    def length(self) -> int:
        """Number of rows S."""
        return self.k.shape[2]

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """See ``Context``; rows are copied."""
        attended = []
        for group in groups:
            own = (t[:, :, group.blocks].flatten(2, 3) for t in (k_BHAKD, v_BHAKD))
            context = (t[:, :, : group.rows] for t in self)
            k_BHND, v_BHND = (torch.cat(pair, dim=2) for pair in zip(context, own, strict=True))
            attended.append(_attend(q_BHGAKD[:, :, :, group.blocks], k_BHND, v_BHND, group.mask))
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=3)


class ContextCache:
    """A context that grows with every round, for decoding (no gradients).

    The buffers double when they are full, so a row is copied O(1) times; a block's rows are written into the
    spare room behind the context and forgotten, which saves a copy of the whole context a round.
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffers: KeysValues | None = None

    def append(self, k_BHND: Tensor, v_BHND: Tensor) -> None:
        """Take over N further committed rows."""
        self._write(k_BHND, v_BHND)
        self.length += k_BHND.shape[2]

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """See ``Context``; only one block, which sees the whole context."""
        assert all(group.rows is None for group in groups), "a growing context is always seen whole"
        return _attend(q_BHGAKD, *self.join(k_BHAKD.flatten(2, 3), v_BHAKD.flatten(2, 3)), None)

    def join(self, k_BHND: Tensor, v_BHND: Tensor) -> KeysValues:
        """The context and a block behind it, ``[B, H, S + N, D]``: views that the next call overwrites."""
        k, v = self._write(k_BHND, v_BHND)
        end = self.length + k_BHND.shape[2]
        return k[:, :, :end], v[:, :, :end]

    def _write(self, k_BHND: Tensor, v_BHND: Tensor) -> KeysValues:
        end = self.length + k_BHND.shape[2]
        k, v = self._room(end, k_BHND)
        k[:, :, self.length : end] = k_BHND
        v[:, :, self.length : end] = v_BHND
        return k, v

    def _room(self, rows: int, like_BHND: Tensor) -> KeysValues:
        if self._buffers is not None and self._buffers[0].shape[2] >= rows:
            return self._buffers
        old = self._buffers
        capacity = max(_FIRST_CAPACITY, 2 * rows)
        batch, heads, _, head_dim = like_BHND.shape
        k, v = (like_BHND.new_empty(batch, heads, capacity, head_dim) for _ in range(2))
        if old is not None:
            k[:, :, : self.length] = old[0][:, :, : self.length]
            v[:, :, : self.length] = old[1][:, :, : self.length]
        self._buffers = k, v
        return self._buffers


class BlockContext(NamedTuple):
    """Contexts of many requests in the blocks of a cache ``[H, S, D]``, each drafting one block (no gradients).

    A drafted block is written behind its context at ``rows_T`` (B*K of them), where the next committed rows go: rows
    of a block are never kept. ``plan`` lets every slot see the whole context and its own block.
    """

    keys_HSD: Tensor
    values_HSD: Tensor
    rows_T: Tensor
    plan: Plan

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """See ``Context``."""
        batch, heads, queries, _, slots, width = q_BHGAKD.shape
        self.keys_HSD.index_copy_(1, self.rows_T, k_BHAKD.transpose(0, 1).flatten(1, 3))
        self.values_HSD.index_copy_(1, self.rows_T, v_BHAKD.transpose(0, 1).flatten(1, 3))
        query_TQD = q_BHGAKD.permute(0, 3, 4, 1, 2, 5).reshape(batch * slots, heads * queries, width)
        out_TQD = attend(query_TQD, self.keys_HSD, self.values_HSD, self.plan)
        return out_TQD.view(batch, 1, slots, heads, queries, width).permute(0, 3, 4, 1, 2, 5)


def _attend(q_BHGAKD: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask: Tensor | None) -> Tensor:
    # The query heads that share a key/value head become one longer query: keys and values are never repeated.
    folded = scaled_dot_product_attention(q_BHGAKD.flatten(2, 4), k_BHND, v_BHND, attn_mask=mask)
    return folded.view(q_BHGAKD.shape)
