"""Which context rows each block sees: those strictly before its anchor, and of the blocks only itself.

Many blocks of one sequence share its context, so their queries are laid end to end and masked. A mask over
all blocks at once would compare every block with the keys of every other only to discard the result; groups
of a few neighbouring blocks waste little, and a group's context ends at its furthest anchor. At 8 sequences x
24 anchors x 7 slots, 350 rows, 3 heads of 64 with 3 queries each, one thread, fp32, forward and backward: all
at once 142 ms, in groups of 8 80 ms.

Legend: B sequences, A anchors of a sequence, a anchors of a group, K slots of a block, G query heads a
key/value head, S rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Neighbouring blocks that share one attention call; 3 to 12 were within 10 % of each other.
_GROUP = 8


@dataclass(frozen=True)
class BlockGroup:
    """Some blocks of each sequence, the number of context rows they look at (None: all), and where they may.

    ``mask [B, 1, G*a*K, rows + a*K]`` is True where a query may look; None is everywhere.
    """

    blocks: slice
    rows: int | None
    mask: Tensor | None


# One block a sequence and nothing in the context that it may not see: decoding one request.
WHOLE_CONTEXT: tuple[BlockGroup, ...] = (BlockGroup(slice(None), None, None),)


def rows_before_anchors(
    anchor_positions: Tensor, rows: int, block_size: int, groups: int, window: int = 0
) -> Sequence[BlockGroup]:
    """Groups for ``anchor_positions [B, A]``, where context row i is position i.

    ``window``: a slot sees only so many positions, its own included (0: all), and its whole block.

    Cheapest when anchors ascend along A, since a group's context is cut at its largest; correct in any order.
    """
    anchors = anchor_positions.shape[1]
    slices = [slice(start, min(start + _GROUP, anchors)) for start in range(0, anchors, _GROUP)]
    furthest_A = anchor_positions.amax(dim=0).tolist()
    seen = [min(rows, max(furthest_A[blocks])) for blocks in slices]
    return [
        BlockGroup(blocks, count, _mask(anchor_positions[:, blocks], count, block_size, groups, window))
        for blocks, count in zip(slices, seen, strict=True)
    ]


def _mask(anchors_Ba: Tensor, rows: int, block_size: int, groups: int, window: int) -> Tensor:
    batch, count = anchors_Ba.shape
    device = anchors_Ba.device
    context_BaS = torch.arange(rows, device=device) < anchors_Ba[..., None]
    own = torch.eye(count, dtype=torch.bool, device=device).repeat_interleave(block_size, dim=1)
    seen_BaN = torch.cat((context_BaS, own.expand(batch, -1, -1)), dim=-1)
    slots_BaKN = seen_BaN[:, :, None].expand(-1, -1, block_size, -1)
    if window:
        at_BaK = anchors_Ba[..., None] + torch.arange(block_size, device=device)
        near_BaKS = torch.arange(rows, device=device) > at_BaK[..., None] - window
        slots_BaKN = torch.cat((slots_BaKN[..., :rows] & near_BaKS, slots_BaKN[..., rows:]), dim=-1)
    return slots_BaKN.flatten(1, 2)[:, None].repeat(1, 1, groups, 1)
