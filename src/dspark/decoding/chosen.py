"""Requests that say themselves how many tokens are drafted for them, beside others that leave it to a planner."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from dspark.decoding.planners import StepPlanner
from dspark.decoding.request import Running
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.cost import Load
from dspark.speculation.loop import Draft


class Chosen:
    """``own`` plans for whoever left ``Request.drafts`` open, as if the others were not there (so it is right about
    what steps cost where they are few); these draft as many tokens as they say, at most ``block``, and verify them all.
    """

    def __init__(self, own: StepPlanner, block: int) -> None:
        self.own = own
        self._block = block
        self._open: list[bool] = []

    @property
    def draft_slots(self) -> Sequence[int | None]:
        """Any length: nobody knows what will be asked for."""
        return [*self.own.draft_slots, *range(1, self._block + 1)]

    def begin(self, rows: Sequence[Running]) -> None:
        """Who chose, and who did not."""
        self._open = [row.request.drafts is None for row in rows]
        self.own.begin(list(compress(rows, self._open)))

    def wanted(self, row: Running, source: Source) -> bool:
        """No copies for those who chose: they asked for the drafter, or for nothing."""
        if row.request.drafts is None:
            return self.own.wanted(row, source)
        return source == "drafter" and row.request.drafts > 0

    def slots(self, row: Running) -> int | None:
        """As many as were asked for."""
        chosen = row.request.drafts
        return self.own.slots(row) if chosen is None else min(chosen, self._block)

    def lengths(self, rows: Sequence[Running], drafts: Sequence[Draft]) -> list[int]:
        """All of those that were asked for."""
        planned = iter(self.own.lengths(list(compress(rows, self._open)), list(compress(drafts, self._open))))
        return [next(planned) if own else len(draft.tokens) for own, draft in zip(self._open, drafts, strict=True)]

    def ahead(self) -> None:
        """Of those who left it open."""
        self.own.ahead()

    def over(self, rounds: Sequence[Round], load: Load, seconds: float) -> None:
        """``own`` learns from its own rounds; a step with others' in it says nothing of what they cost."""
        self.own.over(list(compress(rounds, self._open)), load, seconds)
