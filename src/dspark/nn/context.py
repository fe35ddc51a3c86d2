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
        # Split and not sliced: the gradient of a slice is a whole tensor of zeros around it.
        sizes = [len(range(*group.blocks.indices(k_BHAKD.shape[2]))) for group in groups]
        parts = (q_BHGAKD.split(sizes, dim=3), k_BHAKD.split(sizes, dim=2), v_BHAKD.split(sizes, dim=2))
        attended = []
        for group, q, *own in zip(groups, *parts, strict=True):
            context = (t[:, :, : group.rows] for t in self)
            k_BHND, v_BHND = (torch.cat((a, b.flatten(2, 3)), dim=2) for a, b in zip(context, own, strict=True))
            attended.append(_attend(q, k_BHND, v_BHND, group.mask))
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=3)


class BlockContext(NamedTuple):
    """Contexts of many requests in the blocks of a cache ``[H, S, D]``, each drafting one block (no gradients).

    A drafted block is written behind its context at ``rows_T`` (B*K of them), where the next committed rows go: rows
    of a block are never kept. ``plan`` lets every slot see the whole context and its own block, ``window`` only so many
    positions, its own included.
    """

    keys_HSD: Tensor
    values_HSD: Tensor
    rows_T: Tensor
    plan: Plan
    window: int | None = None

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """See ``Context``."""
        batch, heads, queries, _, slots, width = q_BHGAKD.shape
        self.keys_HSD.index_copy_(1, self.rows_T, k_BHAKD.transpose(0, 1).flatten(1, 3))
        self.values_HSD.index_copy_(1, self.rows_T, v_BHAKD.transpose(0, 1).flatten(1, 3))
        query_TQD = q_BHGAKD.permute(0, 3, 4, 1, 2, 5).reshape(batch * slots, heads * queries, width)
        out_TQD = attend(query_TQD, self.keys_HSD, self.values_HSD, self.plan, window=self.window)
        return out_TQD.view(batch, 1, slots, heads, queries, width).permute(0, 3, 4, 1, 2, 5)


def _attend(q_BHGAKD: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask: Tensor | None) -> Tensor:
    # The query heads that share a key/value head become one longer query: keys and values are never repeated.
    q_BHMD = q_BHGAKD.flatten(2, 4)
    if q_BHMD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # In bf16 the backward of PyTorch's attention takes over twice as long there as in fp32 (docs/lab_log.md).
        with torch.autocast("cpu", enabled=False):
            wide = scaled_dot_product_attention(q_BHMD.float(), k_BHND.float(), v_BHND.float(), attn_mask=mask)
            return wide.view(q_BHGAKD.shape)
    folded = scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND, attn_mask=mask)
    return folded.view(q_BHGAKD.shape)
