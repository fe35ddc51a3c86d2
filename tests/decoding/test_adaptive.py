"""Steps of the core that are planned together: the same texts, the same law, and the reference loop's own rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.decoding.copying import Copying
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.modes import lookup_of
from dspark.decoding.pace import SETTLED, Pace
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.confidence import Calibrations, Logistic
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import OneRequest
from dspark.speculation.planner.guard import Guard
from dspark.speculation.planner.scheduler import Form
from dspark.speculation.rows import Numbers
from dspark.speculation.sampling import Sampling, distribution
from dspark.speculation.together import generate_together
from dspark.targets.model import Target
from dspark.targets.session import TargetSession
from tiny import tiny_drafter, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11], [1, 20, 21, 22, 23], [1] * 21]
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12)]
FORMS: list[Form] = ["price", "averaged", "literal", "algorithm 1"]
TOKENS = 40
# A token costs less than one that is drafted and stands is worth, the more of them the less so; contexts are free.
COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.2, 2.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.0, 0.0))
CHEAP = replace(COSTS, weights=tuple(weight / 8 if i else weight for i, weight in enumerate(COSTS.weights)))
DEAR = CostModel((1,), (1,), (1.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0))
LEARNS = Calibrations({s: Logistic((0.5,) * 4, (0.5,) * 4, (-0.5,) * 4) for s in (Sampling(), Sampling(1.0))})
HASTY = Guard(credit=0.0, doubt=0.0, forgiven=0.2, among=2)
SETTINGS = [
    *(Adaptive(COSTS, LEARNS, form, HASTY) for form in FORMS),
    Adaptive(COSTS),
    Adaptive(COSTS, LEARNS, "averaged", HASTY, delay=2),
    Adaptive(COSTS, LEARNS, guard=None, lengths=(2,)),
    Adaptive(COSTS, LEARNS, guard=HASTY, lengths=(1, 2, 4)),
    Adaptive(DEAR, guard=Guard(credit=0.0, doubt=0.0, forgiven=0.5)),
]


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs stay what they were said to be."""
    monkeypatch.setattr(CostModel, "refined", lambda self, taken: self)
    monkeypatch.setattr(Pace, "after", lambda self, drafting, over_foretold: None)
    monkeypatch.setattr(Pace, "planned", lambda self, drafting, seconds, steps=1: None)


def requests_of(samplings: list[Sampling], **more: Any) -> list[Request]:
    return [Request(f"{i}", ids, samplings[i % len(samplings)], i, TOKENS, **more) for i, ids in enumerate(PROMPTS)]


def pair() -> tuple[Target, DSparkDrafter]:
    target = tiny_target(sharpness=2.0)
    return target, tiny_drafter(target)


def tally_of(rounds: list[Round]) -> RoundTally:
    tally = RoundTally()
    tally.extend(rounds)
    return tally


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.form}-{s.delay}-{s.lengths}-{s.costs.weights[-2]}")
def test_greedy_and_coupled_texts_are_those_of_plain_decoding(settings: Adaptive) -> None:
    target, drafter = pair()
    requests = [*requests_of([Sampling()]), *requests_of(SAMPLINGS[1:], coupled=True)]
    requests = [replace(request, id=f"{i}") for i, request in enumerate(requests)]
    plain = {r.id: [t for x in Decoder(target).reference(r, "plain") for t in x.tokens] for r in requests}
    rounds: list[Round] = []
    for limits in (Limits(12, 1024), Limits(4, 512, step_tokens=7, block=4), Limits(12, 160, block=3)):
        engine = Engine(target, requests, limits, "dspark", drafter, planner=Together(settings, 12, 4))
        for answer in engine.run():
            assert answer.output_ids == plain[answer.request.id]
            rounds += answer.rounds
        assert limits.cache_tokens > 160 or engine.admission.preemptions > 0
    tally = tally_of(rounds)
    assert tally.drafted > tally.verified > tally.accepted > 0 or settings.guard is None


@pytest.mark.parametrize("lookup", [True, False], ids=["copies", "no copies"])
@pytest.mark.parametrize("lengths", [(), (1, 2, 4)], ids=str)
@pytest.mark.parametrize(
    ("form", "delay"), [*((form, 1) for form in FORMS), ("averaged", 2), ("literal", 2)], ids=lambda each: str(each)
)
def test_rounds_are_those_of_the_reference_loop(
    form: Form, delay: int, lengths: tuple[int, ...], lookup: bool, no_clock: None
) -> None:
    """All begin at once, and no clock moves the costs: then both know the same, and draw the same."""
    settings = Adaptive(CHEAP, LEARNS, form, HASTY, delay, lengths, copies=True)
    answers = as_in_the_reference_loop(settings, lookup, Together(settings, 6, 4))
    tally = tally_of([each for rounds in answers for each in rounds])
    assert tally.drafted > tally.verified > tally.accepted > 0
    assert any(not each.drafted for rounds in answers for each in rounds[1:-1]), "some steps rest"
    blocks = {each.drafted for rounds in answers for each in rounds if each.source == "drafter"}
    assert not lengths or len(blocks - {0}) > 1


@pytest.mark.parametrize("lengths", [(), (1, 2, 4)], ids=str)
@pytest.mark.parametrize(("form", "delay"), [("price", 1), ("averaged", 2)], ids=str)
def test_steps_that_only_pass_are_made_up_for(
    form: Form, delay: int, lengths: tuple[int, ...], no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is known before that nobody will draft or copy, steps are planned for together, to the same end."""
    monkeypatch.setattr(Copying, "wanted", False)
    monkeypatch.setattr(Copying, "waits_for", 1000)
    passed = []
    made_up = Together.make_up
    monkeypatch.setattr(Together, "make_up", lambda self: (passed.append(len(self._passed)), made_up(self))[1])
    # Drafts are dear, so that most steps rest, for a few steps each time.
    settings = Adaptive(DEAR, LEARNS, form, Guard(credit=0.0, doubt=0.0, forgiven=0.1, among=2), delay, lengths)
    planner = Together(settings, 6, 4)
    answers = as_in_the_reference_loop(settings, False, planner)
    assert sum(passed) > 20 and max(passed) > 3 and not planner._passed
    assert planner.ledger.steps == max(map(len, answers)) - 1, "the first round of each is its prompt's"
    assert planner.ledger.resting > sum(passed) and planner.ledger.probing > 0


@pytest.mark.parametrize(("form", "delay"), [("price", 1), ("averaged", 2)], ids=str)
def test_copies_end_a_row_of_steps_that_only_pass(
    form: Form, delay: int, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps without any are made up for, then the one with copies is planned as if all had been planned for."""
    passed, broken_off = [], []
    made_up, lengths = Together.make_up, Together.lengths

    def counted(self: Together, rows: Any, drafts: Any) -> list[int]:
        before = self._passes
        found = lengths(self, rows, drafts)
        broken_off.append(before and not self._passes)
        return found

    monkeypatch.setattr(Together, "make_up", lambda self: (passed.append(len(self._passed)), made_up(self))[1])
    monkeypatch.setattr(Together, "lengths", counted)
    settings = Adaptive(DEAR, LEARNS, form, Guard(credit=0.0, doubt=0.0, forgiven=0.1, among=2), delay, copies=True)
    planner = Together(settings, 6, 4)
    answers = as_in_the_reference_loop(settings, True, planner)
    assert sum(passed) > 5 and max(passed) > 1 and sum(broken_off) > 2 and not planner._passed
    assert planner.ledger.steps == max(map(len, answers)) - 1
    every = [each for rounds in answers for each in rounds]
    assert sum(each.drafted > 0 and each.source == "lookup" for each in every) > 5
    assert planner.ledger.drafted == sum(each.drafted for each in every)
    assert planner.ledger.accepted == sum(each.accepted for each in every)


def as_in_the_reference_loop(settings: Adaptive, lookup: bool, planner: Together) -> list[list[Round]]:
    """Rounds of the requests, found to be those of the reference loop."""
    target, drafter = pair()
    requests = requests_of(SAMPLINGS)
    engine = Engine(target, requests, Limits(6, 1024), "dspark", drafter, lookup=lookup, planner=planner)
    answers = {answer.request.id: list(answer.rounds) for answer in engine.run()}

    def seconds(running: int, drafting: int, drafts: int) -> Numbers:
        return settings.costs.rounds(Load(running, running, drafting=drafting), drafts)

    alone = [
        OneRequest(
            TargetSession(target, len(each.prompt_ids) + TOKENS, drafter.config.target_layer_ids),
            DSparkState(drafter),
            each.prompt_ids,
            sampling=each.sampling,
            draws=SeededDraws(each.seed),
            max_tokens=TOKENS,
            lookup=lookup_of("dspark", lookup, each.sampling),
            stop_ids=target.stop_ids,
        )
        for each in requests
    ]
    assert list(generate_together(alone, settings.planning(seconds, len(alone)), drafter.config.block_size))
    assert answers == {f"{i}": request.rounds for i, request in enumerate(alone)}
    planner.make_up()
    return list(answers.values())


def test_sampled_answers_have_the_targets_law(no_clock: None) -> None:
    """Three tokens, of many seeds that share steps; the same test finds a law that is a little off."""
    target = tiny_target(vocab_size=4)
    drafter = tiny_drafter(target, vocab_size=4, mask_token_id=3)
    sampling, prompt, count = Sampling(1.0), [1, 2, 0, 3], 3000
    requests = [Request(f"{i}", prompt, sampling, i, 6, ignore_stop=True) for i in range(count)]
    hopeful = Calibrations({sampling: Logistic((0.5,) * 4, (0.5,) * 4, (1.0,) * 4)})
    settings = Adaptive(CHEAP, hopeful, guard=HASTY)
    planner = Together(settings, 16, drafter.config.block_size)
    engine = Engine(target, requests, Limits(16, 16 * 64), "dspark", drafter, lookup=False, planner=planner)
    answers = list(engine.run())
    tally = tally_of([each for answer in answers for each in answer.rounds])
    assert tally.drafted > tally.verified > tally.accepted > count / 4
    found = Counter(tuple(answer.output_ids[:3]) for answer in answers)
    law = law_of(target, prompt, sampling, 3)
    assert set(found) <= set(law) and len(law) == 64
    assert distance(found, law, count) < 60  # fewer than one run in ten thousand is farther
    bent = {text: p * (1.4 if text[1] == 2 else 1.0) for text, p in law.items()}
    assert distance(found, {text: p / sum(bent.values()) for text, p in bent.items()}, count) > 100


def law_of(target: Target, prompt: list[int], sampling: Sampling, tokens: int) -> dict[tuple[int, ...], float]:
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(tokens):
        longer = {}
        for text, p in law.items():
            session = TargetSession(target, len(prompt) + tokens)
            (p_V,) = distribution(session.extend([*prompt, *text], logits=1).logits_NV, sampling)
            longer |= {(*text, i): p * float(p_V[i]) for i in p_V.nonzero().flatten().tolist()}
        law = longer
    return law


def distance(found: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float], count: int) -> float:
    """Chi-square; texts that are seldom to be expected count as one."""
    often = {text: count * p for text, p in law.items() if count * p >= 10}
    pairs = [(found[text], expected) for text, expected in often.items()]
    pairs.append((count - sum(seen for seen, _ in pairs), count - sum(often.values())))
    return sum((seen - expected) ** 2 / expected for seen, expected in pairs)


def test_seats_are_kept_while_a_request_is_there_and_begun_anew_by_the_next() -> None:
    target, drafter = pair()
    planner = Together(Adaptive(COSTS), 2, drafter.config.block_size)
    engine = Engine(target, requests_of([Sampling()]), Limits(6, 1024), "dspark", drafter)
    engine.step(engine.admission.shares())
    a, b, c = engine.admission.running[:3]
    planner.begin([a, b])
    assert planner._here.tolist() == [0, 1]
    planner._memory = replace(planner._memory, steps=5)
    planner.begin([b])
    assert planner._here.tolist() == [1]
    planner.begin([b, c])
    assert planner._here.tolist() == [1, 0], "the one that went left its seat to the next"
    assert not planner._memory.pasts[0].recent[0]


def test_blocks_longer_than_the_drafters_are_refused() -> None:
    target, drafter = pair()
    with pytest.raises(UserError, match="draft_slots is 5; expected 1 to 4"):
        Engine(target, [], Limits(1, 64), "dspark", drafter, planner=Together(Adaptive(COSTS, lengths=(5,)), 1, 4))


def test_costs_follow_the_machine() -> None:
    target, drafter = pair()
    settings = Adaptive(replace(COSTS, weights=tuple(1e-7 * w for w in COSTS.weights)))
    planner = Together(settings, 6, drafter.config.block_size)
    for _ in range(3):  # costs move sixteen steps at a time, and how many there are is the clock's to say
        engine = Engine(target, requests_of([Sampling()]), Limits(6, 1024), "dspark", drafter, planner=planner)
        list(engine.run())
    load = Load(6, 6)
    assert planner.costs.seconds(load) > 2 * settings.costs.seconds(load), "steps took far longer than foretold"
    assert torch.isfinite(torch.tensor(planner.costs.weights)).all()


def test_a_plain_step_is_heard_behind_others_that_read_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many are served, hardly a step reads none; those behind drafts are not heard, whatever they read."""
    heard: list[bool] = []
    monkeypatch.setattr(Pace, "after", lambda self, drafting, over_foretold: heard.append(drafting))
    planner, without = Together(Adaptive(COSTS), 2, 4), [Round(1, (5,), 0, 0, 0, None)] * 2
    drafted, plain, reading = Load(4, 2, drafting=8), Load(2, 2), Load(34, 3)
    for load in (drafted, drafted, *[reading] * SETTLED[False], reading, plain):
        planner._timed(without, load, 1.0, 0.0)
    assert heard == [True, False]
    for load in (drafted, reading, plain):
        planner._timed(without, load, 1.0, 0.0)
    assert heard == [True, False]
