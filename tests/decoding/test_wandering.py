"""Adaptive decoding on a machine that others use as well: it drafts where that pays, and hardly loses where not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from wandering import BLOCK, Machine, Served, Texts, costs, gained

from dspark.decoding import planners
from dspark.decoding.pace import SETTLED
from dspark.decoding.planners import Adaptive, lengths_of
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.planner.guard import Guard

LENGTHS = lengths_of(BLOCK)
MACHINE = {1: costs(), 4: costs(row=0.06), 16: costs(row=0.05)}
# As a start-up finds them in a minute in which the machine is nearly three times as slow, and by chance drafts dearer
# still.
SLOW_MINUTE = costs(scale=2.7)
BAD_MINUTE = costs(row=0.04, draft=0.22, drafted=0.07, scale=2.7)
# As it is, and one that neither sits out a hard stretch nor comes back soon.
SOUND = Guard()
SHY = Guard(credit=0.0, doubt=0.0, forgiven=0.0005)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that planning itself takes here is none of that machine's."""
    monkeypatch.setattr(planners.time, "perf_counter", lambda: 0.0)


def adaptive(model: CostModel, guard: Guard | None = SOUND) -> Adaptive:
    return Adaptive(model, guard=guard, lengths=LENGTHS)


def gain(settings: Adaptive | int, texts: Texts, requests: int = 1, **machine: Any) -> float:
    """Tokens a second over plain decoding's, mean of three hours."""
    steps = 600 if requests == 1 else 400
    hours = [(Machine(MACHINE[requests], seed, **machine), replace(texts, seed=seed)) for seed in range(3)]
    return fmean(gained(machine, each, settings, requests, steps) for machine, each in hours)


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wandering"])
def test_one_user_drafts_where_it_pays(calm: bool) -> None:
    texts = Texts(0.36)
    best = gain(2, texts, calm=calm)
    assert best > 1.1
    right, slow = (gain(adaptive(model), texts, calm=calm) for model in (MACHINE[1], SLOW_MINUTE))
    assert right > best - 0.02
    assert slow == pytest.approx(right, abs=0.01), "how fast the machine was at the start does not matter"
    assert gain(adaptive(MACHINE[1], SHY), texts, calm=calm) < right - 0.08, "control: a guard that rests by chance"


def test_prices_that_were_wrong_at_the_start_cost_less_than_resting_does() -> None:
    assert gain(adaptive(BAD_MINUTE), Texts(0.36)) > 1.08
    assert gain(adaptive(BAD_MINUTE), Texts(0.65), 4) > 1.12


def test_four_users_draft_where_it_pays() -> None:
    assert gain(adaptive(MACHINE[4]), Texts(0.65), 4) > gain(2, Texts(0.65), 4) > 1.15


@pytest.mark.parametrize("requests", [1, 4, 16])
def test_hardly_anything_is_lost_where_it_does_not_pay(requests: int) -> None:
    """A credit and half a per cent of the time; who never rests loses a tenth and more."""
    texts = Texts(0.12)
    cheap = costs(row=0.03 if requests > 1 else 0.005, draft=0.15)  # half of what drafting takes
    assert all(gain(adaptive(model), texts, requests) > 0.975 for model in (MACHINE[requests], cheap))
    assert gain(adaptive(MACHINE[requests], None), texts, requests) < 0.92, "control"


def test_what_a_step_takes_behind_one_of_the_other_kind_is_not_what_it_takes() -> None:
    """Plain steps among drafts take a quarter more than others here, beside which drafts that lose would gain."""
    texts, flattered = Texts(0.2), costs(draft=0.1)
    assert gain(2, texts, calm=True) < 0.97, "all of them draft, so none is behind another kind"
    for lasts, kept in ((1, 0.98), (5, 0.975)):
        assert gain(adaptive(flattered), texts, calm=True, cold=0.25, lasts=lasts) > kept
    assert gain(adaptive(flattered), texts, calm=True) > 0.98


def test_control_who_hears_plain_steps_just_behind_drafts_drafts_at_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, flattered = Texts(0.2), costs(draft=0.1)
    monkeypatch.setitem(SETTLED, False, 1)
    hasty = replace(SOUND, row=2, heard=16)
    assert gain(adaptive(flattered, hasty), texts, calm=True, cold=0.25, lasts=5) < 0.97


def test_plain_steps_that_are_heard_say_nothing_of_what_planning_resting_ones_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(planners.time, "perf_counter", lambda: 1e-5 * next(ticks))
    served = Served(Adaptive(costs(), lengths=lengths_of(BLOCK)), Machine(costs(), calm=True), Texts(0.9))
    served.run(200)
    planner = served.planner
    assert planner is not None and planner.ledger.resting >= 8 and not planner._memory.resting.rests
    assert planner._pace.planning(True) > 0 == planner._pace.planning(False)


@pytest.mark.parametrize("requests", [1, 16])
def test_copies_are_made_while_they_pay(requests: int) -> None:
    rarely, often = (gain(adaptive(MACHINE[requests]), Texts(0.05, 0.3, each), requests) for each in (0.02, 0.6))
    assert rarely > 0.975 and often > (1.3 if requests == 1 else 1.05)


@pytest.mark.parametrize("copies", [0.0, 0.4])
def test_what_is_dearer_of_drafts_and_of_copies_is_no_part_of_plain_steps(copies: float) -> None:
    """While nearly all steps draft or copy: as if it were, plain ones were believed to take 15 to 19 % too much."""
    true, plain, drafts = costs(row=0.03, draft=0.5), Load(1, 1, 100, 100), Load(3, 1, 100, 100, 2, 200, 3, 2)
    for seed in range(3):
        served = Served(adaptive(costs()), Machine(true, seed, calm=True), Texts(0.65, copies, 0.7, seed))
        served.run(600)
        assert served.planner is not None
        model, dearer = served.planner.costs, served.planner._pace.dearer
        assert dearer > 1.1
        assert model.seconds(plain) == pytest.approx(true.seconds(plain), rel=0.08)
        assert model.seconds(drafts) * dearer == pytest.approx(true.seconds(drafts), rel=0.08)
