"""A request's part in the pass over the target, as it was planned and as it was run.

Legend: N rows whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dspark.decoding.request import Running
from dspark.speculation.loop import Draft


@dataclass
class Work:
    """One request's part in the pass over the target: ``count`` tokens of its text (0: its anchor), then drafts."""

    row: Running
    count: int
    draft: Draft
    length: int  # drafts that are verified

    def __post_init__(self) -> None:
        row, self.start = self.row, self.row.table.length
        # A round leads to a token, and so does reading the end of a prompt.
        self.answers = not self.count or (not row.rounds and self.start + self.count == len(row.ids))
        self.ids = row.ids[self.start : self.start + (self.count or 1)] + self.draft.tokens[: self.length]

    def behind(self, count: int) -> list[int]:
        """The tokens behind the first ``count`` that were run; of an answer that has ended the last one fills up."""
        ids = self.row.ids[self.start + 1 : self.start + 1 + count]
        return ids + self.row.ids[-1:] * (count - len(ids))


def asked(works: Sequence[Work], device: torch.device) -> Tensor:
    """Which of the step's tokens need logits ``int64 [N]``: the anchor (or a prompt's last) and the drafts."""
    ends = accumulate(len(work.ids) for work in works)
    rows = [t for work, end in zip(works, ends, strict=True) if work.answers for t in range(end - work.length - 1, end)]
    return torch.tensor(rows, dtype=torch.int64, device=device)
