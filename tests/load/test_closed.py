"""Closed-loop load: what is counted, and that every mode is asked the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.foundation.errors import UserError
from dspark.load.closed import Run, Traffic, closed_loop, texts
from dspark.load.interleaved import Interleaved
from dspark.speculation.cost import CostModel
from dspark.speculation.sampling import Sampling
from tiny import tiny_drafter, tiny_target

COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.2, 2.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.0, 0.0))
MODES = ["off", "fixed1", "fixed3", "ngram", "adaptive", "delayed"]


def requests(count: int, name: str = "", tokens: int = 12) -> list[Request]:
    return [Request(f"{name}{i}", [1, 5 + i, 9, 13 + i], Sampling(), i, tokens, ignore_stop=True) for i in range(count)]


def ticking() -> Callable[[], float]:
    """A clock that is a second further every time it is read."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_what_is_counted_is_from_the_first_measured_request_to_the_last() -> None:
    engine = Engine(tiny_target(), (), Limits(2, 512))
    traffic = Traffic(requests(2, "before ", 3), requests(5), requests(4, "after "))
    run = closed_loop(engine, traffic, ticking())
    assert {visit.completion.request.id for visit in run.visits} == {f"{i}" for i in range(5)}
    assert run.seconds == run.steps, "the clock is read once a step"
    assert 5 * 12 < run.tokens < 5 * 12 + 2 * 12, "what others wrote meanwhile counts"
    assert run.throughput == run.tokens / run.seconds
    for visit in run.visits:
        assert visit.asked < visit.first < visit.last and visit.tokens == 12
    assert not engine.admission.running and not len(engine.admission.queue), "whoever is left has gone"
    engine.check_integrity()
    figures = run.figures()
    assert figures["requests"] == 5 and figures["tau"] == 1.0 and figures["verify_len"] == 0.0
    assert figures["per_user_tok_s"] == pytest.approx(1.0), "a token a step, a step a second"


def test_every_mode_answers_the_same_in_turn_and_users_are_always_as_many() -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    modes = [Speculation.named(name, 4) for name in MODES]
    heard: list[tuple[str, int]] = []
    runs: dict[str, list[Run]] = {name: [] for name in MODES}

    def hear(mode: str, turn: int, run: Run) -> None:
        heard.append((mode, turn))
        runs[mode].append(run)

    turns = [requests(6, f"{turn}/") for turn in range(4)]  # the last one is not measured
    Interleaved(target, drafter, modes, Adaptive(COSTS), ticking()).measure(3, turns, hear)
    assert sorted(heard) == sorted((mode, turn) for mode in MODES for turn in range(3))
    assert [mode for mode, _ in heard[: len(MODES) + 1]] == [*MODES, "fixed1"], "another mode begins each turn"
    decoder = Decoder(target)
    plain = {each.id: decoder.answer(each, "plain").output_ids for turn in turns[:-1] for each in turn}
    assert all(texts(mine) == plain for mine in runs.values())
    shapes = {name: mine[-1].figures() for name, mine in runs.items()}
    assert shapes["off"]["draft_len"] == 0 < shapes["ngram"]["draft_len"]
    assert 0.8 < shapes["fixed1"]["draft_len"] <= 1 and 2 < shapes["fixed3"]["draft_len"] <= 3
    decided = {name: sum(run.ledger[name] for run in runs["adaptive"]) for name in runs["adaptive"][0].ledger}
    assert decided["steps"] > 0 and decided["drafted"] >= decided["verified"] > 0
    assert decided["seconds"] > 0 and decided["foretold"] > 0
    assert sum(run.ledger["drafted"] for run in runs["delayed"]) > 0
    assert shapes["off"]["planner"] == {}


def test_modes_that_are_none_are_refused() -> None:
    for name in ("fixed", "fixed0", "fixed-1", "Off", "mtp"):
        with pytest.raises(UserError, match=f"no mode '{name}'; expected off, ngram, adaptive, delayed, or fixedK"):
            Speculation.named(name, 4)
    with pytest.raises(UserError, match="asks for 5 drafts, the drafter's blocks have 4"):
        Speculation.named("fixed5", 4)
    with pytest.raises(UserError, match="mtp1 drafts with an MTP-1 checkpoint, and the drafter is of kind dspark"):
        Speculation.named("mtp1", 4, "dspark")
    for name in ("fixed1", "adaptive", "delayed", "mtp1"):
        with pytest.raises(UserError, match="there is no drafter"):
            Speculation.named(name, None)
    assert Speculation.named("ngram", None).fixed is None
    for name in ("adaptive", "delayed"):
        with pytest.raises(UserError, match=f"mode {name} plans by what steps cost, and nobody has measured"):
            Speculation.named(name, 4).planner(None, 1, 4)


def test_delayed_is_adaptive_with_a_budget_from_two_steps_ago() -> None:
    adaptive = Adaptive(COSTS, lengths=(1, 2, 4))
    assert adaptive.delayed == Adaptive(COSTS, form="averaged", delay=2, lengths=(1, 2, 4))
    for name, planned in (("adaptive", adaptive), ("delayed", adaptive.delayed)):
        planner = Speculation.named(name, 4).planner(adaptive, 2, 4)
        assert isinstance(planner, Together)
        scheduler = planner._planning.scheduler
        assert (scheduler.form, scheduler.delay) == (planned.form, planned.delay)
        assert len(planner._memory.pasts) == planned.delay
