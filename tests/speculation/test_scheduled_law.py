"""Losslessness of rounds that are planned together, by enumeration of every branch of the product's own steps.

One step of two requests after every past of an adversarial set is exact, so by induction every step is; several steps
end to end, by dynamic programming over what is committed and what the scheduler remembers, say the same once more with
the scheduler's own pasts. Each test asserts that drafts were made, accepted and trimmed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from dspark.speculation.confidence import Calibrations, Logistic
from dspark.speculation.draws import Purpose
from dspark.speculation.loop import Draft, OneRequest
from dspark.speculation.planner import scheduler as scheduling
from dspark.speculation.planner.algorithm import rates_of
from dspark.speculation.planner.guard import Guard
from dspark.speculation.planner.joint import JointPlanning
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import Plan, Present
from dspark.speculation.planner.scheduler import Form, Memory, RoundSeconds, Scheduler
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.rows import Counts
from dspark.speculation.sampling import Sampling
from dspark.speculation.together import generate_together, step
from enumeration import (
    PROMPT,
    EnumerationDraws,
    Law,
    Logits,
    TableDrafter,
    TableTarget,
    branches,
    constant_logits,
    mixed,
    random_logits,
    target_law,
)

PLAIN = Sampling(1.0)
TILTS = (Tilt(0.4, 6.0), Tilt(-0.3, 9.0))
HASTY = Guard(credit=0.0, doubt=0.0, forgiven=1.0)  # rests at once, and probes a step later
FORMS: list[Form] = ["price", "averaged", "literal", "algorithm 1"]
Ids = tuple[int, ...]
Confidence = Callable[[Ids, int], float]


def logit(c: float) -> float:
    return math.inf if c == 1 else -math.inf if c == 0 else math.log(c / (1 - c))


class Voice:
    """One request's part in draws that are enumerated together."""

    def __init__(self, shared: EnumerationDraws, request: int) -> None:
        self.shared, self.request = shared, request

    def bernoulli(self, p: Any, *, round: int, slot: int, purpose: Purpose) -> bool:
        return self.shared.bernoulli(p, round=1000 * self.request + round, slot=slot, purpose=purpose)

    def categorical(self, p_V: Any, *, round: int, slot: int, purpose: Purpose) -> int:
        return self.shared.categorical(p_V, round=1000 * self.request + round, slot=slot, purpose=purpose)


class From:
    """Draws of a request that goes on from an id that is committed already."""

    def __init__(self, anchor: int, voice: Voice) -> None:
        self.anchor, self.voice = anchor, voice

    def bernoulli(self, p: Any, **key: Any) -> bool:
        return self.voice.bernoulli(p, **key)

    def categorical(self, p_V: Any, **key: Any) -> int:
        return self.anchor if key["round"] == 0 else self.voice.categorical(p_V, **key)


@dataclass
class Case:
    """Requests on tables of their own, and how they are drafted."""

    targets: list[Logits]
    drafters: list[Logits]
    block: int
    confidence: Confidence
    sampling: Sampling = PLAIN
    support: list[int] | None = None  # ids that are drafted; None: all
    drafter: type[TableDrafter] = TableDrafter

    def request(self, number: int, ids: Ids, draws: EnumerationDraws) -> OneRequest:
        """Request ``number`` with ``ids`` committed, the last of them being its anchor."""
        request = OneRequest(
            TableTarget(self.targets[number]),
            self.drafter(self.drafters[number], self.block, self.support, self.confidence),
            list(ids[:-1]),
            sampling=self.sampling,
            draws=From(ids[-1], Voice(draws, number)),
            max_tokens=10**6,
        )
        request.start()
        return request


@dataclass
class Outcome:
    """Law of what is committed, and the expected numbers of drafts on the way."""

    law: dict[tuple[Ids, ...], float]
    error: float = math.nan
    drafted: float = 0.0
    verified: float = 0.0
    accepted: float = 0.0
    memories: list[Memory] = field(default_factory=list)


def key_of(memory: Memory) -> Any:
    """What a memory says, as something that can be looked up."""
    heard = [each for waiting in memory.heard.values() for each in waiting]
    return (
        memory.pasts,
        memory.tilts,
        memory.resting,
        memory.steps,
        memory.promise,
        memory.length,
        tuple((each.weights.tobytes(), each.curvature.tobytes()) for each in memory.learned.values()),
        tuple((*each.logits, *each.peaks, each.observed, each.accepted) for each in heard),
    )


def run(case: Case, scheduler: Scheduler, start: list[Ids], memory: Memory, steps: int) -> Outcome:
    """``steps`` steps from ``start``: after each, branches of the same text and the same memory are one again."""
    planning = JointPlanning(scheduler)
    states = {(tuple(start), key_of(memory)): (1.0, memory)}
    outcome = Outcome({})
    for _ in range(steps):
        following: dict[Any, tuple[float, Memory]] = {}
        for (ids, _), (p, before) in states.items():

            def once(
                draws: Any, ids: tuple[Ids, ...] = ids, before: Memory = before
            ) -> tuple[tuple[Ids, ...], Memory, tuple[int, int, int]]:
                requests = [case.request(i, own, draws) for i, own in enumerate(ids)]
                rounds, after = step(requests, planning, before)
                counts = (sum(r.drafted for r in rounds), sum(r.verified for r in rounds))
                return tuple(tuple(r.ids) for r in requests), after, (*counts, sum(r.accepted for r in rounds))

            for q, (text, after, counts) in branches(once):
                known, _ = following.get((text, key_of(after)), (0.0, after))
                following[text, key_of(after)] = known + p * q, after
                outcome.drafted += p * q * counts[0]
                outcome.verified += p * q * counts[1]
                outcome.accepted += p * q * counts[2]
        states = following
        outcome.memories += [memory for _, memory in states.values()]
    tokens = steps * (case.block + 1)
    law: dict[tuple[Ids, ...], float] = defaultdict(float)
    for (text, _), (p, _) in states.items():
        own = [completed(case, i, ids, tokens + len(start[i])) for i, ids in enumerate(text)]
        for parts in product(*(each.items() for each in own)):
            law[tuple(output for output, _ in parts)] += p * math.prod(chance for _, chance in parts)
    outcome.law = dict(law)
    expected: dict[tuple[Ids, ...], float] = {}
    laws = [completed(case, i, ids, tokens + len(ids)) for i, ids in enumerate(start)]
    for parts in product(*(each.items() for each in laws)):
        expected[tuple(output for output, _ in parts)] = math.prod(chance for _, chance in parts)
    keys = law.keys() | expected.keys()
    outcome.error = max(abs(law.get(k, 0.0) - expected.get(k, 0.0)) for k in keys)
    return outcome


def completed(case: Case, number: int, ids: Ids, length: int) -> Law:
    """The target's own law of texts of ``length`` ids that begin with ``ids``; longer ones are cut."""
    rest = target_law(case.targets[number], case.sampling, ids, max(0, length - len(ids)))
    return {(*ids, *more)[:length]: p for more, p in rest.items()}


def assert_lossless(outcome: Outcome) -> None:
    assert outcome.drafted > outcome.verified > outcome.accepted > 0, "drafts are made, trimmed and accepted"
    assert outcome.error < 1e-9, f"the law differs by {outcome.error}"


def confidence_of(salt: str, *, saturated: bool = False) -> Confidence:
    """A table of confidences, spread out, or certain ones and ties among them."""

    def confidence(prefix: Ids, slot: int) -> float:
        value = float(random_logits(1, f"{salt} confidence")(prefix))
        if not saturated:
            return 1.5 * value
        return logit(1.0 if value > -0.3 else 0.5 if value > -0.9 else 0.0)

    return confidence


def two_requests(vocabulary: int, block: int, *, support: list[int] | None = None, saturated: bool = False) -> Case:
    targets = [random_logits(vocabulary, f"scheduled {i}") for i in range(2)]
    drafters = [mixed(target, random_logits(vocabulary, f"drafter {i}")) for i, target in enumerate(targets)]
    return Case(targets, drafters, block, confidence_of("two", saturated=saturated), support=support)


# Rounds of n drafts: a curve that trims, and a staircase that trims.
CURVES = {
    "curve": lambda requests, drafts: 1 + 0.28 * np.arange(drafts + 1) ** 1.2,
    "stairs": lambda requests, drafts: 1 + 0.45 * np.ceil((np.arange(drafts + 1) - 1).clip(0) / 2),
}


def timed(curve: Callable[[int, int], Any], plain: float = 1.0) -> RoundSeconds:
    """Rounds by a curve, and steps in which nobody drafts."""
    return lambda requests, drafting, drafts: curve(requests, drafts) if drafting else np.full(drafts + 1, plain)


def pasts_of(block: int) -> list[Past]:
    """Nothing, good, bad, uneven, certain and hopeless pasts."""
    nothing, slots = Past.nothing(2, block), np.arange(2)
    rows = [[[0.9] * 2, [0.8] * 2], [[0.2] * 2, [0.1] * 2], [[0.95] * 2, [0.05] * 2], [[1.0] * 2] * 2, [[0.0] * 2] * 2]
    pasts = [nothing]
    for row in rows:
        past = nothing
        for _ in range(3):
            past = past.after(Present.of([each[:block] for each in row]), slots)
        pasts.append(past)
    return pasts


def one_step_after(pasts: list[Past], form: Form, curve: Any, case: Case) -> None:
    trimmed = 0.0
    for past in pasts:
        outcome = run(case, Scheduler(timed(curve), form), [(0, 1), (0, 2)], Memory((past,), TILTS), steps=1)
        assert outcome.drafted > 0 and outcome.error < 1e-9
        trimmed += outcome.drafted - outcome.verified if outcome.accepted > 0 else 0.0
    assert trimmed > 0.1


@pytest.mark.parametrize("saturated", [False, True], ids=["spread", "saturated"])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_two_requests_after_every_past(form: Form, curve: Any, saturated: bool) -> None:
    case = two_requests(3, 2, support=[0, 2], saturated=saturated)
    # Each form goes through all pasts, half of them with each curve; Algorithm 1 reads none.
    pasts = pasts_of(2)[:1] if form == "algorithm 1" else pasts_of(2)[curve is CURVES["stairs"] :: 2]
    one_step_after(pasts, form, curve, case)


@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_two_requests_that_draft_every_id(form: Form) -> None:
    one_step_after(pasts_of(2)[3:4], form, CURVES["curve"], two_requests(3, 2))


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_one_request_end_to_end(form: Form) -> None:
    case = Case(
        [target := random_logits(2, "one")], [mixed(target, random_logits(2, "one's"))], 2, confidence_of("one")
    )
    scheduler = Scheduler(timed(CURVES["curve"], plain=0.7), form, 2, HASTY)
    outcome = run(case, scheduler, [(0, 1)], scheduler.begin(1, 2), steps=4)
    assert_lossless(outcome)
    assert any(memory.resting.rests for memory in outcome.memories), "some rest"


@pytest.mark.parametrize("form", FORMS)
def test_who_drafts_at_a_small_loss_and_then_rests(form: Form) -> None:
    case = Case(
        [target := random_logits(2, "one")], [mixed(target, random_logits(2, "one's"))], 2, confidence_of("one")
    )
    scheduler = Scheduler(timed(CURVES["curve"], plain=0.65), form, 1, Guard(credit=0.4, doubt=0.0, forgiven=1.0))
    past = Past.nothing(1, 2)
    for _ in range(4):
        past = past.after(Present.of([[0.6, 0.3]]), np.arange(1))
    outcome = run(case, scheduler, [(0, 1)], Memory((past,), TILTS[:1]), steps=3)
    assert_lossless(outcome)
    assert any(memory.resting.rests for memory in outcome.memories)
    assert any(0 < memory.resting.lost <= 0.4 for memory in outcome.memories)


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_two_requests_end_to_end(form: Form) -> None:
    case = two_requests(2, 1)
    scheduler = Scheduler(timed(CURVES["stairs"]), form, 2, replace(HASTY, among=2))
    assert_lossless(run(case, scheduler, [(0, 1), (0, 0)], scheduler.begin(2, 1), steps=3))


@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_a_length_that_the_past_chooses(form: Form, delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_RECONSIDERED", 2)
    monkeypatch.setattr(scheduling, "_LOOKED", 3)
    target = random_logits(2, "lengths")
    case = Case([target], [mixed(target, random_logits(2, "its"))], 2, confidence_of("lengths"))

    def seconds(requests: int, drafted: int, drafts: int) -> Any:
        return 0.8 + 0.05 * drafted + 0.2 * np.arange(drafts + 1) if drafted else np.ones(drafts + 1)

    scheduler = Scheduler(seconds, form, delay, HASTY, lengths=(1, 2))
    outcome = run(case, scheduler, [(0, 1)], scheduler.begin(1, 2), steps=4)
    assert_lossless(outcome)
    assert {memory.asks for memory in outcome.memories} == {1, 2}


class Headless(TableDrafter):
    """Without a confidence head: as sure of a draft as its own law is of its likeliest token."""

    def draft(self, ids: list[int], features: Any, sample: Any, slots: int | None = None) -> Draft:
        draft = super().draft(ids, features, sample, slots)
        return replace(draft, confidence=draft.peaks)


@pytest.mark.parametrize("learn_from", [1, 2])
@pytest.mark.parametrize("drafter", [TableDrafter, Headless])
@pytest.mark.parametrize("form", FORMS)
def test_confidence_that_is_learned_on_the_way_and_rounds_that_explore(
    form: Form, drafter: type[TableDrafter], learn_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if learn_from == 2:  # as for many requests
        for module in ("joint", "plan", "past", "price", "budget"):
            monkeypatch.setattr(f"dspark.speculation.planner.{module}.FEW", 0)
    target = random_logits(2, "learned")
    case = Case([target], [mixed(target, random_logits(2, "its"))], 2, confidence_of("learned"), drafter=drafter)
    scheduler = Scheduler(timed(CURVES["curve"]), form, 1, HASTY, explore_every=3, learn_from=learn_from)
    doubtful = Calibrations({PLAIN: Logistic((1.0, 1.0), (0.5, 0.5), (-0.5, -0.5))})
    outcome = run(case, scheduler, [(0, 1)], JointPlanning(scheduler, doubtful).begin(1, 2), steps=3)
    assert_lossless(outcome)
    weights = {memory.learned[PLAIN, "drafter"].weights.tobytes() for memory in outcome.memories}
    assert len(weights) > (10 if learn_from == 1 else 5)
    assert len({memory.tilts for memory in outcome.memories}) > 10


@pytest.mark.parametrize("sampling", [Sampling(0.6), Sampling(1.0, top_k=2)], ids=str)
def test_requests_with_blocks_of_their_own_and_other_sampling(sampling: Sampling) -> None:
    """One of them drafts nothing, as a request at its end or a new one does, or none of them does."""

    class Shy(TableDrafter):
        def draft(self, ids: list[int], features: Any, sample: Any, slots: int | None = None) -> Draft:
            draft = super().draft(ids, features, sample, slots)
            return draft if len(ids) % 2 else Draft([])

    case = two_requests(3, 2, support=[0, 2])
    case.sampling, case.drafter = sampling, Shy
    for past in pasts_of(2)[:4]:
        for start in ([(0, 1), (0, 1, 2)], [(0, 2), (0, 1)]):
            outcome = run(case, Scheduler(timed(CURVES["curve"])), start, Memory((past,), TILTS), steps=1)
            assert outcome.error < 1e-9
            assert (outcome.drafted > 0) == (len(start[1]) % 2 == 1)


# Controls: planners that know too much. App. A's case (5.2) for two requests at once: p_t = (.7, .3), p_d = (.5, .5),
# c_1 = .8, and c_2 = .9 after x_1 = A and 0 after x_1 = B.

A = 0


def app_a() -> Case:
    def confidence(prefix: Ids, slot: int) -> float:
        return logit(0.8) if slot == 0 else logit(0.9 if prefix[-1] == A else 0.0)

    return Case([constant_logits(0.7, 0.3)] * 2, [constant_logits(0.5, 0.5)] * 2, 2, confidence)


def steep(requests: int, drafts: int) -> Any:
    """Three drafts or four pay where one or both of the second ones are likely, two never do."""
    return np.array([1.0, 1.5, 1.9, 2.1, 2.3])[: drafts + 1]


class Searches(Scheduler):
    """A search without a stop over the present drafts (App. A)."""

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        survival_N, whose_N = present.ranked()
        rates = rates_of(
            present.requests, survival_N, self.seconds(present.requests, present.requests, len(survival_N))
        )
        return Plan.first(whose_N, int(rates.argmax()), present.requests)


class CountsThePresent(Scheduler):
    """A budget of the past, to which the present confidences are added first."""

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        return super().plan(replace(memory, pasts=(memory.oldest.after(present, slots),)), present, slots)


class RestsAfterALook(Scheduler):
    """Decides whether drafting pays once the drafts are there."""

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        if sum(row[-1] for row in present.rows) < 0.5:
            return Plan.chains([0] * present.requests)
        return Plan.chains([*map(len, present.rows)])


class BreaksTiesByLuck(Scheduler):
    """Of equal drafts takes those of the request whose block as a whole looks better."""

    def plan(self, memory: Memory, present: Present, slots: Counts, asked: Counts | None = None) -> Plan:
        best = int(np.argmax([*map(sum, present.rows)]))
        return Plan.chains([int(i == best) for i in range(present.requests)])


@pytest.mark.parametrize("broken", [Searches, CountsThePresent, RestsAfterALook, BreaksTiesByLuck])
def test_control_a_planner_that_knows_too_much_bends_the_law(broken: type[Scheduler]) -> None:
    start, memory = [(0, 1), (0, 1)], Memory((Past.nothing(2, 2),), (LEVEL, LEVEL))
    form: Form = "literal"
    sound = run(app_a(), Scheduler(timed(steep), form), start, memory, steps=1)
    assert sound.drafted > 0 and sound.error < 1e-12
    bent = run(app_a(), broken(timed(steep), form), start, memory, steps=1)
    assert bent.drafted > bent.verified > bent.accepted > 0
    assert bent.error > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_the_paths_of_requests_end_where_plain_decoding_ends(form: Form) -> None:
    case = two_requests(2, 1)
    scheduler = Scheduler(timed(CURVES["curve"]), form, 2)

    accepted: list[int] = []

    def outputs(draws: Any) -> tuple[Ids, Ids]:
        requests = [
            OneRequest(
                TableTarget(case.targets[i]),
                TableDrafter(case.drafters[i], 1, None, case.confidence),
                list(PROMPT),
                sampling=PLAIN,
                draws=Voice(draws, i),
                max_tokens=3,
            )
            for i in range(2)
        ]
        for rounds in generate_together(requests, JointPlanning(scheduler), 1):
            accepted.extend(each.accepted for each in rounds)
        first, second = (tuple(request.ids[1:]) for request in requests)
        return first, second

    law: dict[Any, float] = defaultdict(float)
    for p, texts in branches(outputs):
        law[texts] += p
    assert sum(accepted) > 0
    laws = [target_law(target, PLAIN, PROMPT, 3) for target in case.targets]
    for a, b in product(*laws):
        assert law[a, b] == pytest.approx(laws[0][a] * laws[1][b], abs=1e-12)
