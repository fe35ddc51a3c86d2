"""Plans of steps for many requests: the forms side by side, and what each may know.

Everything that a scheduler remembers is a value, which a step takes and a step that is over gives anew:

    who drafts? -> (they draft) -> plan -> (the target's pass, verdicts) -> after

Legend: R requests, K drafts of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dspark.speculation.planner.algorithm import early_stopped
from dspark.speculation.planner.budget import Budget, admit, capacity
from dspark.speculation.planner.guard import DRAFTING, Guard, Resting
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import Counts, Numbers, Plan, Present
from dspark.speculation.planner.price import convex_slopes, worth_their_price
from dspark.speculation.recalibration import LEVEL, Recalibration, Tilt

Form = Literal["price", "averaged", "literal", "algorithm 1"]

# (requests, drafts) -> seconds ``[drafts+1]`` of complete rounds of so many requests that verify 0, 1, ... drafts.
RoundSeconds = Callable[[int, int], Numbers]
# requests -> seconds of a step in which nobody drafts.
PlainSeconds = Callable[[int], float]
# Confidence logits and peaks ``[R, K]`` of drafts, and how many of them each request verified and accepted ``[R]``.
Outcomes = tuple[Numbers, Numbers, Counts, Counts]


@dataclass(frozen=True)
class Memory:
    """``pasts``: the past as each of the last steps left it, the newest last; ``tilts``: what each slot's request has
    shown of itself; ``resting``: how long nobody drafted; ``steps``: how many there were; ``learned``: how confidence
    is read, if that is learned from rounds that are over.
    """

    pasts: tuple[Past, ...]
    tilts: tuple[Tilt, ...]
    resting: Resting = DRAFTING
    steps: int = 0
    learned: Recalibration | None = None

    @property
    def oldest(self) -> Past:
        """What the next step may be planned from."""
        return self.pasts[0]


@dataclass(frozen=True)
class Scheduler:
    """How many drafts of each request are verified.

    ``form``: "price" and "algorithm 1" plan when the drafts are there; "averaged" and "literal" fix the number of
    drafts ahead (``capacity``) and fill it (``admit``). ``delay``: how many steps ago the past ends, 1 where a step is
    over before the next is planned, 2 where the next is laid out while one runs (section 5.3). ``guard`` None: every
    step drafts. ``explore_every``: in one step of so many a request verifies all of its drafts, 0 for never.
    """

    seconds: RoundSeconds
    plain: PlainSeconds
    form: Form = "averaged"
    delay: int = 1
    guard: Guard | None = None
    explore_every: int = 0

    def __post_init__(self) -> None:
        if self.delay < 1 or self.explore_every < 0:
            raise ValueError(f"delay is {self.delay}, explore_every {self.explore_every}; expected at least 1 and 0")

    def begin(self, slots: int, block: int, learned: Recalibration | None = None) -> Memory:
        """Before the first step, for ``slots`` requests at once and blocks of up to ``block`` drafts; ``learned``: what
        confidence is read through until rounds have said more.
        """
        return Memory((Past.nothing(slots, block),) * self.delay, (LEVEL,) * slots, learned=learned)

    def drafts(self, memory: Memory, slots: Counts) -> tuple[Counts, Memory]:
        """Who drafts in the next step, of its requests' ``slots [R]``: all, nobody, or a few to see whether it pays."""
        if self.guard is None or not len(slots):
            return slots, memory
        gain = None
        if memory.oldest.known:
            gain = self._promised(memory, slots).rate * self.plain(len(slots)) / len(slots) - 1
        drafting, resting = self.guard.next_step(gain, memory.resting)
        asked = slots[self.guard.asked(len(slots), memory.steps, resting)] if drafting else slots[:0]
        return asked, replace(memory, resting=resting)

    def plan(self, memory: Memory, present: Present, slots: Counts) -> Plan:
        """What the step verifies of its drafts."""
        plan = self._planned(memory, present, slots)
        if not self.explore_every:
            return plan
        exploring = (memory.steps + slots) % self.explore_every == 0
        return Plan.chains(np.where(exploring, present.drafted, plan.lengths).tolist())

    def after(
        self,
        memory: Memory,
        over: Present,
        slots: Counts,
        ended: Counts,
        outcomes: Outcomes | None = None,
        tilts: Sequence[Tilt] = (),
    ) -> Memory:
        """When the step is over; ``ended``: the slots of requests that won't come again; ``outcomes``: of all that
        drafted, for what is learned from them; ``tilts``: those of ``slots`` now, none where they are as they were.
        """
        newest = memory.pasts[-1].forgotten() if memory.resting.probing else memory.pasts[-1]
        pasts = (*memory.pasts[1:], newest.after(over, slots))
        learned = memory.learned
        if learned is not None and outcomes is not None:
            learned = learned.after(*outcomes)
        shown = dict(enumerate(memory.tilts)) | dict(zip(slots.tolist(), tilts, strict=False))
        shown |= dict.fromkeys(ended.tolist(), LEVEL)
        pasts = tuple(past.without(ended) for past in pasts)
        return Memory(pasts, tuple(shown.values()), memory.resting, memory.steps + 1, learned)

    def _planned(self, memory: Memory, present: Present, slots: Counts) -> Plan:
        if not present.drafted.any():
            return Plan.chains([0] * present.requests)
        if self.form == "algorithm 1":
            return early_stopped(present, self._curve(present.requests, present.survival.shape[1]))
        budget = self._promised(memory, slots)
        if self.form != "price":
            return admit(present, budget)
        seconds = self._curve(present.requests, present.survival.shape[1])
        return worth_their_price(present, budget.rate, seconds, convex_slopes(seconds))

    def _promised(self, memory: Memory, slots: Counts) -> Budget:
        past = memory.oldest
        seconds = self._curve(len(slots), past.block)
        return capacity(past, slots, seconds, literal=self.form == "literal")

    def _curve(self, requests: int, block: int) -> Numbers:
        return self.seconds(requests, requests * block)
