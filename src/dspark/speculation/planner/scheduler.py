"""Plans of steps for many requests: the forms side by side, and what each may know.

Everything that a scheduler remembers is a value, which a step takes and a step that is over gives anew:

    who drafts? -> (they draft) -> plan -> (the target's pass, verdicts) -> after

With a delay of two or more the next step's budget may be worked out during the target's pass (``ahead``): it needs
nothing of the step that runs.

Legend: R requests, K drafts of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dspark.speculation.acceptance import Source
from dspark.speculation.planner.algorithm import early_stopped
from dspark.speculation.planner.budget import Budget, admit, capacity
from dspark.speculation.planner.guard import DRAFTING, Guard, Resting
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import Plan, Present
from dspark.speculation.planner.price import Prices, worth_their_price
from dspark.speculation.recalibration import LEVEL, Outcome, Recalibration, Tilt
from dspark.speculation.rows import Counts, Numbers
from dspark.speculation.sampling import Sampling

Form = Literal["price", "averaged", "literal", "algorithm 1"]

# (requests, tokens drafted for them, drafts) -> seconds ``[drafts+1]`` of complete rounds that verify 0, 1, ... drafts.
RoundSeconds = Callable[[int, int, int], Numbers]
# Steps after which all lengths of a block are compared again, and after which a longer one is looked at for a step (or
# all are compared, where nobody drafts).
_RECONSIDERED, _LOOKED = 8, 64
# Of lengths that promise as much but for this share the longest is asked for: what is verified of it is chosen when its
# confidence is known, which a promise does not count.
_WITHIN = 0.01
_MANY = 8  # one in so many requests may be another one, and a promise still holds
# Whose confidence it is: what is accepted depends on a request's sampling and on what proposed the draft.
Regime = tuple[Sampling, Source]


@dataclass(frozen=True)
class Promise:
    """What the past says of a step of so many ``requests``: the best ``budget`` if all draft, and tokens a second of
    ``plain`` steps, in which nobody does; ``step``: which one it was worked out for; ``prices`` of whole blocks of all,
    where drafts are verified by these.
    """

    requests: int
    budget: Budget
    plain: float
    step: int = 0
    prices: Prices | None = field(default=None, compare=False)

    @property
    def gain(self) -> float:
        """Of drafting over not drafting."""
        return self.budget.rate / self.plain - 1


@dataclass(frozen=True)
class Memory:
    """``pasts``: the past as each of the last steps left it, the newest last; ``tilts``: what each slot's request has
    shown of itself; ``resting``: how long nobody drafted; ``steps``: how many there were; ``learned``: how confidence
    is read, from rounds that are over; ``heard``: outcomes that nothing has been learned from yet; ``promise``: what
    the past promised when it was last asked, for as long as that holds;
    ``length`` of the blocks that paid best when all were compared, 0 before that; ``coming``: promise and length of the
    next step, where they were worked out during this one.
    """

    pasts: tuple[Past, ...]
    tilts: tuple[Tilt, ...]
    resting: Resting = DRAFTING
    steps: int = 0
    learned: Mapping[Regime, Recalibration] = field(default_factory=dict)
    heard: Mapping[Regime, tuple[Outcome, ...]] = field(default_factory=dict)
    promise: Promise | None = None
    length: int = 0
    coming: tuple[Promise, int] | None = None

    @property
    def asks(self) -> int:
        """Drafts that a request which is asked to draft is asked for."""
        return self.length or self.oldest.block

    @property
    def rests(self) -> bool:
        """Whether nobody drafts, not even to see whether it pays."""
        return self.resting.rests

    @property
    def reconsiders(self) -> int:
        """Steps after which all lengths are compared again: while nobody drafts nothing new is learned."""
        return _LOOKED if self.rests else _RECONSIDERED

    def still_says(self, requests: int) -> bool:
        """Whether the promise is of a step of so many requests; while nobody drafts, of about as many: what one more or
        less could change is seen at the next probe.
        """
        if self.promise is None:
            return False
        return abs(requests - self.promise.requests) * _MANY <= (self.promise.requests if self.rests else 0)

    @property
    def oldest(self) -> Past:
        """What the next step may be planned from."""
        return self.pasts[0]

    def without(self, slots: Counts) -> Memory:
        """Where requests have ended and others take their slots; a promise to many outlives the few for a while."""
        shown = dict(enumerate(self.tilts)) | dict.fromkeys(slots.tolist(), LEVEL)
        pasts, promise = tuple(past.without(slots) for past in self.pasts), self.promise
        if promise and (len(slots) * _MANY > promise.requests or self.steps - promise.step >= self.reconsiders):
            promise = None
        return replace(self, pasts=pasts, tilts=tuple(shown.values()), promise=promise, coming=None)


@dataclass(frozen=True)
class Scheduler:
    """How many drafts of each request are verified.

    ``form``: "price" and "algorithm 1" plan when the drafts are there; "averaged" and "literal" fix the number of
    drafts ahead (``capacity``) and fill it (``admit``). ``delay``: how many steps ago the past ends, 1 where a step is
    over before the next is planned, 2 where the next is laid out while one runs (section 5.3). ``guard`` None: every
    step drafts. ``explore_every``: in one step of so many a request verifies all of its drafts, 0 for never.
    ``learn_from``: rounds that confidence learns from at once. ``lengths`` of blocks that may be asked for; none where
    all are of the longest. ``holds``: steps with drafts for which a promise of the past holds.
    """

    seconds: RoundSeconds
    form: Form = "averaged"
    delay: int = 1
    guard: Guard | None = None
    explore_every: int = 0
    learn_from: int = 1
    lengths: tuple[int, ...] = ()
    holds: int = 1

    def __post_init__(self) -> None:
        if min(self.delay, self.learn_from, self.holds) < 1 or self.explore_every < 0:
            raise ValueError(
                f"delay is {self.delay}, learn_from {self.learn_from}, holds {self.holds}, explore_every"
                f" {self.explore_every}; expected at least 1, 1, 1 and 0"
            )

    def begin(self, slots: int, block: int, learned: Mapping[Regime, Recalibration] | None = None) -> Memory:
        """Before the first step, for ``slots`` requests at once and blocks of up to ``block`` drafts; ``learned``: what
        confidence is read through until rounds have said more.
        """
        return Memory((Past.nothing(slots, block),) * self.delay, (LEVEL,) * slots, learned=learned or {})

    def drafts(self, memory: Memory, slots: Counts) -> tuple[Counts, Memory]:
        """Who drafts in the next step, of its requests' ``slots [R]``: all, nobody, or a few to see whether it pays.

        The memory that comes back knows how many tokens they are asked for (``asks``).
        """
        if not len(slots) or (self.guard is None and not self.lengths):
            return slots, memory
        memory = self._looked_ahead(memory, slots)
        if self.guard is None:
            return slots, memory
        gain = memory.promise.gain if memory.promise else None
        drafting, resting = self.guard.next_step(gain, memory.resting, memory.steps, len(slots))
        if drafting and resting.probing:
            return self._probe(self.guard, replace(memory, resting=resting), slots)
        return slots if drafting else slots[:0], replace(memory, resting=resting)

    def rests_for(self, memory: Memory, requests: int) -> int:
        """For how many steps of so many requests at least, the next one among them, nobody will be asked to draft, as
        long as the same ones go on: until what was lost is waited for, or the past is asked anew.
        """
        promise = memory.promise
        if self.guard is None or promise is None or not memory.still_says(requests):
            return 0
        until = _LOOKED - memory.steps % _LOOKED
        asks_anew = until >= _LOOKED - 1  # in this step (``_looked_ahead``)
        return 0 if asks_anew else min(until, self.guard.waits_for(promise.gain, memory.resting))

    def rested(self, memory: Memory, steps: int) -> Memory:
        """After so many steps of the same requests, no more than it ``rests_for``: what ``drafts`` and ``after`` would
        have come to, one by one.
        """
        if not steps:
            return memory
        assert self.guard is not None, "nobody rests"
        newest = memory.pasts[-1]
        pasts = (*memory.pasts[steps:], *(newest.faded(n) for n in range(max(1, steps - self.delay + 1), steps + 1)))
        resting = self.guard.waited(memory.resting, steps)
        return replace(memory, pasts=pasts, resting=resting, steps=memory.steps + steps)

    def ahead(self, memory: Memory, slots: Counts) -> Memory:
        """With the next step's promise, if its requests are the same ``slots [R]``; for a ``delay`` of two or more, in
        a step with drafts. What follows is the same as without, in another order (at the seconds of now).
        """
        if self.delay < 2 or not len(slots) or (self.guard is None and not self.lengths):
            return memory
        following = replace(memory, pasts=memory.pasts[1:], steps=memory.steps + 1, promise=self._held(memory))
        known = self._looked_ahead(following, slots)
        return memory if known.promise is None else replace(memory, coming=(known.promise, known.length))

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        """What the step verifies of its drafts; ``asked``: slots that the drafter drafted for (None: all with drafts,
        which are no copies then).
        """
        asked = slots[[bool(row) for row in present.rows]] if asked is None else asked
        plan = self._planned(memory, present, slots, asked)
        if not self.explore_every:
            return plan
        exploring = [(memory.steps + slot) % self.explore_every == 0 for slot in slots.tolist()]
        if not any(exploring):
            return plan
        each = zip(exploring, present.rows, plan.lengths, strict=True)
        return Plan.chains([len(row) if whole else length for whole, row, length in each])

    def after(
        self,
        memory: Memory,
        over: Present,
        slots: Counts,
        ended: Counts,
        outcomes: Mapping[Regime, Sequence[Outcome]] | None = None,
        tilts: Sequence[Tilt] = (),
    ) -> Memory:
        """When the step is over; ``ended``: the slots of requests that won't come again; ``outcomes``: of their
        drafts, by whose confidence is learned from them; ``tilts``: those of ``slots`` now, none where they are as
        they were.
        """
        drafted = any(over.rows)
        newest = memory.pasts[-1].forgotten() if memory.resting.woken else memory.pasts[-1]
        pasts = (*memory.pasts[1:], newest.after(over, slots) if drafted else newest.faded())
        if not drafted and not outcomes:
            over_now = replace(memory, pasts=pasts, steps=memory.steps + 1)
            return over_now.without(ended) if len(ended) else over_now
        learned, heard = {**memory.learned}, {**memory.heard}
        for regime, became in (outcomes or {}).items():
            waiting = (*heard.get(regime, ()), *became)
            if len(waiting) >= self.learn_from:
                learned[regime] = learned[regime].with_outcomes(waiting)
                waiting = ()
            heard[regime] = waiting
        shown = list(memory.tilts)
        for slot, tilt in zip(slots.tolist(), tilts, strict=False):
            shown[slot] = tilt
        promise, length = memory.coming or (self._held(memory) if drafted else memory.promise, memory.length)
        over_now = Memory(pasts, tuple(shown), memory.resting, memory.steps + 1, learned, heard, promise, length)
        return over_now.without(ended) if len(ended) else over_now

    def _probe(self, guard: Guard, memory: Memory, slots: Counts) -> tuple[Counts, Memory]:
        """A few of the slots, or all where that is promised to lose less than a few would."""
        few, promise, resting = slots[guard.few(len(slots), memory.steps)], memory.promise, memory.resting
        if promise is None or len(few) == len(slots):
            return few, memory
        spared = self._capacity(memory, slots, few, memory.asks).rate / promise.plain - 1 - promise.gain
        if spared <= 0:
            return slots, memory
        return few, replace(memory, resting=replace(resting, lost=max(0.0, resting.lost - spared)))

    def _held(self, memory: Memory) -> Promise | None:
        """What still holds of a promise after a step with drafts: nothing after a probe, which is made to know more."""
        promise = None if memory.resting.probing else memory.promise
        return promise if promise and memory.steps + 1 - promise.step < self.holds else None

    def _planned(self, memory: Memory, present: Present, slots: Counts, asked: Counts) -> Plan:
        drafts = present.drafts  # no more, or a price would hold what nobody can buy
        if not drafts:
            return Plan.chains([0] * present.requests)
        if self.form in ("averaged", "literal"):
            return admit(present, self._allowed(memory, present, slots, asked))
        all_asked = memory.promise is not None and len(asked) == len(slots) == memory.promise.requests
        promise = memory.promise if all_asked else None
        prices = promise and promise.prices
        if prices and len(prices.steps) == drafts:
            return worth_their_price(present, self._rate(memory, slots, asked), prices)
        seconds = self.seconds(present.requests, len(asked) * memory.asks, drafts)
        if self.form == "algorithm 1":
            return early_stopped(present, seconds)
        return worth_their_price(present, self._rate(memory, slots, asked), Prices.of(seconds))

    def _allowed(self, memory: Memory, present: Present, slots: Counts, asked: Counts) -> Budget:
        """What the past says of a step with drafts of these: what it promised to all, where all have some and anybody
        was ``asked`` (who copies in place of drafting will draft again). Of copies it knows no more than that they are
        drafts, so these count as such that take no time to make.
        """
        having, promise = slots[[bool(row) for row in present.rows]], memory.promise
        if promise and len(asked) and len(having) == len(slots) == promise.requests:
            return promise.budget
        seconds = self.seconds(len(slots), len(asked) * memory.asks, len(having) * memory.asks)
        return self._budget(memory, having, seconds, memory.asks, len(slots) - len(having))

    def _rate(self, memory: Memory, slots: Counts, asked: Counts) -> float:
        """Tokens a second that steps earn where ``asked`` of the slots draft, no fewer than plain ones: nobody would
        draft at a loss. Who copies in place of drafting will draft again, so what was promised to all holds.
        """
        promise = memory.promise if memory.promise and memory.promise.requests == len(slots) else None
        plain = promise.plain if promise else self._plain_rate(len(slots))
        if not len(asked):
            return plain
        if promise is None or memory.resting.probing:
            return max(plain, self._capacity(memory, slots, asked, memory.asks).rate)
        return max(plain, promise.budget.rate)

    def _looked_ahead(self, memory: Memory, slots: Counts) -> Memory:
        """With what the past promises if all ``slots`` draft, in blocks of the length that it promises most of."""
        looking, behind = (memory.length and memory.steps % _LOOKED == number for number in (0, 1))
        due = bool(self.lengths) and (not memory.length or memory.steps % memory.reconsiders == 0 or behind)
        known = memory.promise if memory.promise and memory.still_says(len(slots)) else None
        if not memory.oldest.known or (known and (not due or known.step == memory.steps)):
            return memory
        lengths = self.lengths if due else (memory.asks,)
        curves = {length: self.seconds(len(slots), len(slots) * length, len(slots) * length) for length in lengths}
        budgets = {length: self._budget(memory, slots, curve, length) for length, curve in curves.items()}
        enough = (1 - _WITHIN) * max(budget.rate for budget in budgets.values())
        best = max(length for length, budget in budgets.items() if budget.rate >= enough)
        prices = Prices.of(curves[best]) if self.form == "price" else None
        promise = Promise(len(slots), budgets[best], self._plain_rate(len(slots)), memory.steps, prices)
        longer = min((each for each in lengths if each > best), default=best)
        return replace(memory, promise=promise, length=longer if looking else best)

    def _capacity(self, memory: Memory, slots: Counts, asked: Counts, length: int) -> Budget:
        others, drafts = len(slots) - len(asked), len(asked) * length
        return self._budget(memory, asked, self.seconds(len(slots), drafts, drafts), length, others)

    def _budget(self, memory: Memory, asked: Counts, seconds: Numbers, length: int, others: int = 0) -> Budget:
        return capacity(memory.oldest, asked, seconds, length, others=others, literal=self.form == "literal")

    def _plain_rate(self, requests: int) -> float:
        """Tokens a second of steps in which nobody drafts."""
        return requests / float(self.seconds(requests, 0, 0)[0])
