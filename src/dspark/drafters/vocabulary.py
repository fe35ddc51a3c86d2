"""The draft vocabulary: which target ids a drafter can propose, and its form in a checkpoint.

Index i of the drafter's logits stands for target id ``i + d2t[i]``; ids ascend, so ties go to the lowest id
here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.foundation.errors import UserError


def check_draft_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise UserError unless ``ids`` is a non-empty ascending list of target ids below ``vocab_size``."""
    if not ids:
        raise UserError("the draft vocabulary is empty; give at least one id, or None for the whole vocabulary")
    for before, after in zip(ids, ids[1:], strict=False):
        if after <= before:
            raise UserError(f"draft vocabulary: id {after} follows {before}; expected ascending ids without repeats")
    if ids[0] < 0 or ids[-1] >= vocab_size:
        raise UserError(
            f"draft vocabulary: ids run from {ids[0]} to {ids[-1]}, the target's from 0 to {vocab_size - 1}; "
            "choose it again with this target's tokenizer"
        )


def d2t_from_ids(ids: Sequence[int]) -> Tensor:
    """Offsets ``d2t [V_d]``, int64, as checkpoints hold them."""
    ids_D = torch.tensor(ids, dtype=torch.int64)
    return ids_D - torch.arange(len(ids))


def ids_from_d2t(d2t: Tensor) -> tuple[int, ...]:
    """Target ids of ``d2t [V_d]``. Raises UserError for anything but a list of integers."""
    if d2t.dim() != 1 or d2t.dtype not in (torch.int64, torch.int32):
        raise UserError(
            f"d2t is {d2t.dtype} of shape {list(d2t.shape)}; expected int64 [draft_vocab_size]: "
            "the checkpoint is damaged"
        )
    return tuple((d2t.long() + torch.arange(d2t.shape[0])).tolist())
