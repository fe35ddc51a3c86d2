"""Which positions of an answer start a block, and what each slot of a block is taught.

Legend: B sequences, S positions, A anchors of a sequence, K slots of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """A anchors of each sequence with the labels of their K slots; slot j (0-based) predicts position anchor + j + 1.

    anchor_ids, anchor_positions ``[B, A]``; labels (x_k), previous (x_{k-1}), supervised (bool) ``[B, A, K]``.
    Where a slot is not supervised its labels mean nothing.
    """

    anchor_ids: Tensor
    anchor_positions: Tensor
    labels: Tensor
    previous: Tensor
    supervised: Tensor


def choose_anchors(
    supervised_BS: Tensor, count: int, generator: torch.Generator, unrolled: int = 0
) -> tuple[Tensor, Tensor]:
    """At most ``count`` anchors a sequence, drawn without repeats among positions a with a and a + 1 supervised; for a
    drafter that is ``unrolled`` so many steps, among those with any label of these steps supervised.

    Returns positions ``[B, A]``, ascending, and their validity ``[B, A]``; A is the most that any sequence has.
    """
    candidates_BS = _unrolled_from(supervised_BS, unrolled)
    if not unrolled:
        candidates_BS[:, :-1] = supervised_BS[:, :-1] & supervised_BS[:, 1:]
    noise_BS = torch.rand(supervised_BS.shape, generator=generator).to(supervised_BS.device)
    drawn = noise_BS.masked_fill(~candidates_BS, -1.0).sort(dim=-1, descending=True)
    width = min(count, int(candidates_BS.sum(dim=-1).max()))
    valid_BA = drawn.values[:, :width] >= 0
    # Those of a sequence with fewer candidates sink to the end as position 0, invalid.
    last = supervised_BS.shape[1]
    positions_BA = drawn.indices[:, :width].masked_fill(~valid_BA, last).sort(dim=-1).values
    valid_BA = positions_BA < last
    return positions_BA.masked_fill(~valid_BA, 0), valid_BA


def _unrolled_from(supervised_BS: Tensor, steps: int) -> Tensor:
    """Positions a >= 1 (before an anchor there is a pair) with one of a + 1..a + steps supervised."""
    found_BS = torch.zeros_like(supervised_BS)
    for ahead in range(1, min(steps + 1, supervised_BS.shape[1])):
        found_BS[:, :-ahead] |= supervised_BS[:, ahead:]
    found_BS[:, 0] = False
    return found_BS


def blocks_at(
    ids_BS: Tensor,
    supervised_BS: Tensor,
    positions_BA: Tensor,
    valid_BA: Tensor,
    block_size: int,
    unrolled: bool = False,
) -> Blocks:
    """Labels of the blocks at ``positions_BA``; supervision of a block stops at its first unsupervised label, while an
    ``unrolled`` step counts wherever its own label is supervised.
    """
    rows, length = ids_BS.shape
    steps_K = torch.arange(block_size, device=ids_BS.device)
    label_at_BAK = positions_BA[..., None] + 1 + steps_K
    inside_BAK = label_at_BAK < length
    label_at_BAK = label_at_BAK.clamp(max=length - 1)
    row_B11 = torch.arange(rows, device=ids_BS.device)[:, None, None]
    taught_BAK = supervised_BS[row_B11, label_at_BAK] & inside_BAK & valid_BA[..., None]
    return Blocks(
        anchor_ids=ids_BS.gather(1, positions_BA),
        anchor_positions=positions_BA,
        labels=ids_BS[row_B11, label_at_BAK],
        previous=ids_BS[row_B11, (positions_BA[..., None] + steps_K).clamp(max=length - 1)],
        supervised=taught_BAK if unrolled else taught_BAK.long().cumprod(dim=-1).bool(),
    )
