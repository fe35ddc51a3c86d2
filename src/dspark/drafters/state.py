"""One request on the drafter: its growing context and the drafting of a block.

Legend: K slots of a block, V_d draft vocabulary, n rows committed since the last round, L tapped layers, d hidden size.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from dspark.drafters.drafter import Drafter, Drafting, Room
from dspark.drafters.heads import peaks
from dspark.nn.blocks import BlockTable
from dspark.speculation.loop import Draft, Sample

_FIRST_ROOM = 256  # rows of a new context; they double when they are full


class DSparkState:
    """The drafter's side of one request (``speculation.loop.DrafterState``).

    The context holds one row for every committed token but the anchor: it grows by the n + 1 rows of x_0..x_n
    after a round with n accepted drafts. Rows of a block are never kept.
    """

    def __init__(self, drafter: Drafter, slots: int | None = None) -> None:
        """``slots``: drafts of a round, the block size of the drafter's training if None."""
        self.drafter, self._slots = drafter, slots
        self._table = BlockTable([0])
        self._room: Room = drafter.new_room(1, _FIRST_ROOM + drafter.config.block_size)

    @property
    def length(self) -> int:
        """Rows of the context."""
        return self._table.length

    @torch.inference_mode()
    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        """Draft K tokens after ``ids[-1]``, the anchor.

        ``ids``: all committed target ids. ``features [n, L*d]``: tapped hidden states of the positions
        committed since the last call, in order, never the anchor's own (None: there are none). ``sample(slot,
        logits [V_d], support)`` draws. ``slots``: K, what the state was made for if None. Raises ValueError, before
        anything changes, where the rows and the committed ids don't match.
        """
        rows = 0 if features is None else features.shape[0]
        if self.length + rows != len(ids) - 1:
            raise ValueError(
                f"the drafter's context has {self.length} rows and was given {rows} more, but {len(ids)} "
                f"committed tokens need {len(ids) - 1}: one for every token before the anchor"
            )
        if features is not None and rows:
            self._extend(features, ids)
        return self._chain(ids[-1], self._room.begin(ids[-1:], [self._table], slots or self._slots), sample)

    def _extend(self, features: Tensor, ids: list[int]) -> None:
        end, device = self.length + len(features), self.drafter.device
        if end + self.drafter.config.block_size > self._room.cache.size:
            self._room = self._room.grown(2 * end + self.drafter.config.block_size)
        rows_T = torch.arange(self.length, end, device=device)  # of the only block: positions
        if self._room.reads_next:
            self._room.extend(features, rows_T, rows_T, torch.tensor(ids[self.length + 1 : end + 1], device=device))
        else:
            self._room.extend(features, rows_T, rows_T)
        self._table.length = end

    def _chain(self, anchor: int, drafting: Drafting, sample: Sample) -> Draft:
        """One token after another, each drawn before the next one's logits are asked for, up to a slot without any."""
        drafter = self.drafter
        draft_ids = drafter.config.draft_ids
        chain_1K = torch.full((1, drafting.slots + 1), anchor, device=drafter.device)
        tokens: list[int] = []
        probs: list[Tensor] = []
        peaks_K = torch.full((drafting.slots,), torch.nan, device=drafter.device)
        for slot in range(drafting.slots):
            (logits_V,) = drafting.logits(chain_1K[:, slot])
            peaks_K[slot] = peaks(logits_V)
            if not peaks_K[slot].isfinite():
                break
            index, probs_V = sample(slot, logits_V, drafter.support)
            tokens.append(index if draft_ids is None else draft_ids[index])
            probs.append(probs_V)
            chain_1K[0, slot + 1] = tokens[-1]
        if not tokens:
            return Draft([], broken=drafting.slots)
        (confidence_K,) = drafting.confidence(chain_1K[:, :-1], peaks_K[None])
        count = len(tokens)
        confidence, sure = confidence_K[:count].tolist(), peaks_K[:count].tolist()
        draft = Draft(tokens, torch.stack(probs), drafter.support, confidence, sure, broken=drafting.slots - count)
        return draft.sound(next((slot for slot, each in enumerate(confidence) if not isfinite(each)), count))
