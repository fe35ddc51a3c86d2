"""How the core plans its steps: every request by itself, or all that are under way together.

By itself a request's rounds depend on its own past alone, so a seed is one text whatever else is served. Together they
depend on the load and on the clock: the law of every answer stays what it was, its draws do not (a greedy or coupled
request's text does).

Legend: R requests that will have a round in a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dspark.decoding.copying import Copying
from dspark.decoding.ledger import Ledger
from dspark.decoding.modes import LOOKUP_BLOCK
from dspark.decoding.pace import SETTLED, Pace
from dspark.decoding.request import Running
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.loop import Draft
from dspark.speculation.planner.guard import Guard
from dspark.speculation.planner.joint import JointPlanning, Planned
from dspark.speculation.planner.scheduler import Form, RoundSeconds, Scheduler
from dspark.speculation.planner.single import Planning
from dspark.speculation.recalibration import EXPLORING
from dspark.speculation.rows import Counts, Numbers

# Steps that costs, and rounds (or steps of all requests, if those are more) that confidence learns from at once: each
# by itself would take longer than it tells. And steps for which a rate that the past promises is good.
_STEPS, _ROUNDS, _TAUGHT, HOLDS = 16, 64, 4, 4
_LENGTHS = (1, 2, 3, 5, 7, 10)
_NOBODY: Counts = np.zeros(0, dtype=np.int64)


class StepPlanner(Protocol):
    """What the core asks in a step, in this order."""

    @property
    def draft_slots(self) -> Sequence[int | None]:
        """Every length of a block that it may ask the drafter for (None: whole ones)."""
        ...

    def begin(self, rows: Sequence[Running]) -> None:
        """``rows`` [R] will have a round."""

    def wanted(self, row: Running, source: Source) -> bool:
        """Whether ``source`` may propose in the request's round."""
        ...

    def slots(self, row: Running) -> int | None:
        """How many tokens the drafter drafts for the request (None: whole blocks)."""
        ...

    def lengths(self, rows: Sequence[Running], drafts: Sequence[Draft]) -> list[int]:
        """How many of their drafts are verified ``[R]``."""
        ...

    def ahead(self) -> None:
        """The target's pass runs: time for what the next step needs and this one can't change."""

    def over(self, rounds: Sequence[Round], load: Load, seconds: float) -> None:
        """The step is over: the R rounds, what it worked on and what it took."""


class Apart:
    """Every request by its own past: ``greedy`` and ``sampled`` say how. With no drafter, copies are verified whole."""

    def __init__(self, greedy: Planning, sampled: Planning, *, drafter: bool = True) -> None:
        self._greedy, self._sampled, self._drafter = greedy, sampled, drafter
        self._drafts: Sequence[tuple[Running, Draft]] = ()

    @property
    def draft_slots(self) -> Sequence[int | None]:
        """Those of all its plannings."""
        return [each.draft_slots for plan in (self._greedy, self._sampled) for each in (plan, *plan.special.values())]

    def begin(self, rows: Sequence[Running]) -> None:
        """Nothing: a request's past says all."""

    def wanted(self, row: Running, source: Source) -> bool:
        """While that has paid."""
        return not self._drafter or self._planning(row).when(row.rounds, source)

    def slots(self, row: Running) -> int | None:
        """As its planning says."""
        return self._planning(row).draft_slots

    def lengths(self, rows: Sequence[Running], drafts: Sequence[Draft]) -> list[int]:
        """As many as its planning takes."""
        self._drafts = list(zip(rows, drafts, strict=True))
        return [self._length(row, draft) for row, draft in self._drafts]

    def ahead(self) -> None:
        """Nothing: each round is planned from the one before."""

    def over(self, rounds: Sequence[Round], load: Load, seconds: float) -> None:
        """Each request's tilt goes on."""
        for (row, draft), round in zip(self._drafts, rounds, strict=True):
            if round.verified:
                row.tilt = draft.teaches(row.tilt, self._planning(row).calibrations.of(row.request.sampling), round)

    def _length(self, row: Running, draft: Draft) -> int:
        drafted = len(draft.tokens)
        if not drafted or not self._drafter:
            return drafted
        planning = self._planning(row)
        survival = draft.survival(planning.calibrations.of(row.request.sampling), row.tilt)
        return planning.verify_length(drafted, survival)

    def _planning(self, row: Running) -> Planning:
        sampling = row.request.sampling
        return (self._greedy if sampling.greedy else self._sampled).of(sampling)


@dataclass(frozen=True)
class Adaptive:
    """How steps are planned together: ``costs`` of complete rounds on this machine, how confidence is read, the form of
    the scheduler and when nobody drafts; ``delay``: how many steps ago the past ends that they are planned from, 2 as
    if the next step were laid out while one runs; ``lengths`` of blocks to choose from (none: as in training).
    ``copies``: look for them in steps without drafts, whether they pay or not.
    """

    costs: CostModel
    calibrations: Calibrations = Calibrations()
    form: Form = "price"
    guard: Guard | None = Guard()
    delay: int = 1
    lengths: tuple[int, ...] = ()
    copies: bool = False

    @property
    def delayed(self) -> Adaptive:
        """The same for a pipeline that lays out a step while the one before it runs: how many drafts are verified is
        fixed by what was over two steps ago, which ones by their own confidence (section 5.3, averaged).
        """
        return replace(self, form="averaged", delay=2)

    def planning(self, seconds: RoundSeconds, slots: int) -> JointPlanning:
        """By what rounds take, for up to ``slots`` requests."""
        holds = HOLDS if self.form == "price" else 1  # a budget is made for its own step
        rounds = max(_ROUNDS, _TAUGHT * slots)
        scheduler = Scheduler(seconds, self.form, self.delay, self.guard, EXPLORING, rounds, self.lengths, holds)
        return JointPlanning(scheduler, self.calibrations, LOOKUP_BLOCK)


def lengths_of(block: int) -> tuple[int, ...]:
    """Lengths of blocks that are worth choosing between, up to that of the drafter's training."""
    return (*(length for length in _LENGTHS if length < block), block)


class Together:
    """All requests by one scheduler, which knows what steps cost and learns it from those that are over.

    ``slots``: requests at most; ``block``: drafts of the drafter's whole blocks. What it learns it keeps from one
    engine to the next.
    """

    def __init__(self, settings: Adaptive, slots: int, block: int) -> None:
        self.costs = settings.costs
        """As steps have refined them."""
        self.ledger = Ledger()
        self._lengths = settings.lengths or (block,)
        self._planning = settings.planning(self._seconds, slots)
        self._memory = self._planning.begin(slots, max(self._lengths))
        self._taken: list[tuple[Load, float]] = []
        self._pace, self._spent = Pace(), 0.0
        self._kind = False, 0
        """Whether the last step of rounds drafted, and how many of its kind there were in a row (``pace.SETTLED``)."""
        self._copying, self._copies = Copying(), settings.copies
        self._base = Load(0, 0)
        self._priced = self.costs, self._base, 0.0
        """A load, and what it takes by these costs."""
        self._seats: dict[int, Running] = {}
        self._asked: frozenset[Running] = frozenset()
        self._rows: list[Running] = []
        self._here: Counts = np.zeros(0, dtype=np.int64)
        """Their seats."""
        self._planned: Planned | None = None
        self._passes, self._to_pass = False, 0
        """Whether nobody is asked to draft in this step, as was known before it, and for how many behind it."""
        self._passed: list[tuple[Sequence[Round], Load, float]] = []
        """What such steps were, until they are made up for: one by one each would find the caches cold."""
        self._making_up = 0.0
        """Seconds of this step that went into that, no part of what it takes by itself."""

    @property
    def draft_slots(self) -> Sequence[int | None]:
        """Any that it may choose."""
        return self._lengths

    def begin(self, rows: Sequence[Running]) -> None:
        """Seats for those that have none, and who drafts."""
        if self._to_pass and self._rows == rows:
            self._to_pass -= 1
            self._spent = self._making_up = 0.0
            return
        self._making_up = 0.0
        self.make_up()
        started = time.perf_counter()
        self._look_at(rows)
        if self._rows != rows:
            seats = self._seated(rows)
            self._here = np.array([seats[row] for row in rows], dtype=np.int64)
            self._rows = list(rows)
        certain = self._certain()
        self._passes, self._to_pass = certain > 0, max(0, certain - 1)
        if not self._passes:
            self._ask()
        self._spent = time.perf_counter() - started

    def wanted(self, row: Running, source: Source) -> bool:
        """Drafts of those who are asked; copies where anybody is, and else while they pay, but in no step that is heard
        to know what plain ones take.
        """
        if source == "lookup":
            return bool(self._asked) or self._copies or (self._memory.resting.rests and self._copying.wanted)
        return row in self._asked

    def slots(self, row: Running) -> int | None:
        """As many for all as the scheduler asks for."""
        return self._memory.asks

    def lengths(self, rows: Sequence[Running], drafts: Sequence[Draft]) -> list[int]:
        """As the scheduler plans. Copies that come unasked end a row of steps that only pass."""
        if self._passes and not any(draft.slots for draft in drafts):
            return [0] * len(rows)
        self.make_up()
        started = time.perf_counter()
        if self._passes:
            self._passes, self._to_pass = False, 0
            self._look_at(rows)
            self._ask()
            assert not self._asked, "a step had passed that should have asked for drafts"
        samplings = [row.request.sampling for row in rows]
        self._planned = self._planning.plan(self._memory, self._here, samplings, drafts)
        self._spent += time.perf_counter() - started
        return list(self._planned.lengths)

    def ahead(self) -> None:
        """The next step's promise, where the past that it is planned from is over already (``delay``).

        A step with copies alone leaves the promise that there is.
        """
        if self._planning.scheduler.delay < 2:
            return
        drafts = () if self._planned is None else self._planned.drafts
        if not any(draft.slots and draft.source == "drafter" for draft in drafts):
            return
        started = time.perf_counter()
        self._memory = self._planning.scheduler.ahead(self._memory, self._here)
        self._spent += time.perf_counter() - started

    def over(self, rounds: Sequence[Round], load: Load, seconds: float) -> None:
        """Learn from it; costs are those of rounds, so a step that read prompts as well says nothing of them."""
        if self._passes:
            self._passed.append((rounds, load, seconds - self._making_up - self._spent))
            return
        started, seconds = time.perf_counter(), seconds - self._making_up
        self._learn(rounds, load, seconds)
        planning = time.perf_counter() - started
        if load.drafting or self._memory.resting.rests:  # who is heard between drafts is planned as these are
            self._pace.planned(bool(load.drafting), self._spent + planning)
        self._copied(rounds, load, seconds + planning)

    def make_up(self) -> None:
        """Learn from resting steps that have only passed what each would have taught.

        A step that plans does so first; whoever reads ``costs`` or ``ledger`` in the thread of the steps may.
        """
        if not self._passed:
            return
        started, passed = time.perf_counter(), self._passed
        self._passed = []
        self.ledger.rested(len(passed), sum(len(rounds) for rounds, _, _ in passed))
        for rounds, load, seconds in passed:
            self._timed(rounds, load, seconds, 0.0)
            if load.requests == len(rounds):
                self._copying.after(False, 0.0, seconds / self._foretold(load), 1.0, len(rounds))
        self._memory = self._planning.scheduler.rested(self._memory, len(passed))
        if len(ended := self._ended(passed[-1][0])):  # nobody did before, or others would have come
            self._memory = self._memory.without(ended)
        self._making_up = time.perf_counter() - started
        self._pace.planned(False, self._making_up / len(passed), len(passed))

    def _look_at(self, rows: Sequence[Running]) -> None:
        """What a step of these works on without drafts."""
        context = sum(row.table.length for row in rows)
        laws = sum(not row.request.sampling.greedy for row in rows)
        self._base, self._planned = Load(len(rows), len(rows), context, context, laws=laws), None

    def _ask(self) -> None:
        """Who drafts."""
        asked, self._memory = self._planning.scheduler.drafts(self._memory, self._here)
        self._asked = frozenset(self._seats[seat] for seat in asked.tolist())
        if self._rows:
            self.ledger.decided(len(asked), self._memory.resting.probing)

    def _certain(self) -> int:
        """How many steps, the next one among them, nobody is asked to draft in, as long as these requests go on; while
        copies are looked for these may come, and else nobody looks for any in so many steps.
        """
        rests = self._planning.scheduler.rests_for(self._memory, len(self._rows))
        return rests if self._copies or self._copying.wanted else min(rests, self._copying.waits_for)

    def _learn(self, rounds: Sequence[Round], load: Load, seconds: float) -> None:
        """From a step that is over, and was planned."""
        self._timed(rounds, load, seconds, self._spent)
        if self._planned is not None and len(rounds):
            self.ledger.came(rounds, self._planned.expected)
            self._memory = self._planning.after(self._memory, self._planned, rounds, self._ended(rounds))

    def _timed(self, rounds: Sequence[Round], load: Load, seconds: float, spent: float) -> None:
        """What a step took, in which so much was ``spent`` on planning; of one that read prompts as well only its kind
        counts.
        """
        drafting = bool(load.drafting)
        copies = not drafting and any(round.verified for round in rounds)  # alone: of neither kind
        settled = bool(rounds) and not copies and self._in_a_row(drafting) >= SETTLED[drafting]
        if load.requests != len(rounds):
            return
        foretold, working = self._foretold(load), seconds - spent
        dearer = self._pace.dearer if drafting else 1.0
        self.ledger.took(seconds, foretold * dearer + self._pace.planning(drafting))
        if settled:
            self._taken.append((load, working / dearer))  # or all parts would follow what is dearer of drafts
            self._pace.after(drafting, working / foretold)
        elif copies:
            self._taken.append((load, working))
        if len(self._taken) == _STEPS:
            self.costs = self.costs.refined(self._taken)
            self._taken.clear()
            self._pace.anew()
            self._copying.anew()

    def _in_a_row(self, drafting: bool) -> int:
        """How many steps of its kind came before this one, with none of the other kind between them."""
        kind, row = self._kind
        before = row if drafting == kind else 0
        self._kind = drafting, before + 1
        return before

    def _ended(self, rounds: Sequence[Round]) -> Counts:
        """Seats of requests whose last rounds these were."""
        over = [each.finish is not None for each in rounds]
        return self._here[over] if any(over) else _NOBODY

    def _copied(self, rounds: Sequence[Round], load: Load, took: float) -> None:
        """What copies gained in a step in which nobody was asked to draft."""
        if rounds and not self._asked and load.requests == len(rounds):
            gained = sum(each.accepted for each in rounds) / len(rounds)
            copies = self._planned is not None and bool(self._planned.drafts)
            base = self._foretold(self._base)
            foretold = self._foretold(load) / base if copies else 1.0
            self._copying.after(copies, gained, took / base, foretold, len(rounds))

    def _foretold(self, load: Load) -> float:
        """Seconds of a step by ``costs``, which a step at rest asks of the same load more than once."""
        costs, known, seconds = self._priced
        if costs is not self.costs or known != load:
            seconds = self.costs.seconds(load)
            self._priced = self.costs, load, seconds
        return seconds

    def _seated(self, rows: Sequence[Running]) -> dict[Running, int]:
        """The seat of each row; who is not here has none, and whoever takes one begins anew."""
        here = set(rows)
        self._seats = {seat: row for seat, row in self._seats.items() if row in here}
        seats = {row: seat for seat, row in self._seats.items()}
        free = (seat for seat in range(len(self._memory.tilts)) if seat not in self._seats)
        fresh = dict(zip((row for row in rows if row not in seats), list(free), strict=False))
        if fresh:
            self._memory = self._memory.without(np.array(list(fresh.values()), dtype=np.int64))
        self._seats |= {seat: row for row, seat in fresh.items()}
        return seats | fresh

    def _seconds(self, requests: int, drafted: int, drafts: int) -> Numbers:
        """Of rounds by themselves: prompts must be read whether anybody drafts or not, and counted as the step's own
        time they would make drafts look cheap.
        """
        base = self._base
        reads, laws = (drafted * each // max(1, base.requests) for each in (base.context, base.laws))
        load = base._replace(drafting=drafted, reads_drafting=reads, laws_drafting=laws)
        seconds = self.costs.rounds(load, drafts)
        return seconds * (self._pace.dearer if drafted else 1.0) + self._pace.planning(bool(drafted))
