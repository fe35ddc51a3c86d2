"""Planning for many requests: the order, Algorithm 1, budgets from the past, prices, and the guard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dspark.speculation.planner import budget, plan, price
from dspark.speculation.planner import past as past_module
from dspark.speculation.planner.algorithm import early_stopped, rates_of
from dspark.speculation.planner.budget import Budget, admit, capacity
from dspark.speculation.planner.guard import DRAFTING, Guard, Resting
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import Plan, Present
from dspark.speculation.planner.price import Prices, convex_slopes, worth_their_price
from dspark.speculation.planner.scheduler import Form, Memory, Scheduler
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.rows import Numbers

Rows = list[list[float]]
HASTY = Guard(credit=0.0, doubt=0.0, forgiven=0.07)
# Few values, so that ties, certain drafts and hopeless ones are frequent.
conditional = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])
blocks = st.lists(st.lists(conditional, max_size=4), min_size=1, max_size=4)
rising = st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=16, max_size=16)


def survival_of(rows: Rows) -> Rows:
    return [list(itertools.accumulate(row, lambda a, b: a * b)) for row in rows]


def present_of(rows: Rows) -> Present:
    return Present.of(survival_of(rows))


def seconds_of(steps: list[float], first: float = 1.0) -> Numbers:
    return first + np.cumsum([0.0, *steps])


def plans(rows: Rows, seconds: Numbers) -> list[Plan]:
    """The same drafts planned in every form."""
    present = present_of(rows)
    return [
        early_stopped(present, seconds),
        worth_their_price(present, 0.8, Prices.of(seconds)),
        admit(present, Budget(3, 1.0)),
    ]


def by_hand(rows: Rows, seconds: Numbers) -> list[int]:
    """Algorithm 1 as it is written: one draft after the other."""
    order = sorted((-a, j, r) for r, row in enumerate(survival_of(rows)) for j, a in enumerate(row))
    lengths, tau, tokens = [0] * len(rows), float(len(rows)), 0
    best = tau / seconds[0]
    for negative, _, r in order:
        tau, tokens = tau - negative, tokens + 1
        if tau / seconds[tokens] <= best:
            break
        best, lengths[r] = tau / seconds[tokens], lengths[r] + 1
    return lengths


@given(blocks, rising)
def test_algorithm_1_is_the_one_that_is_written(rows: Rows, steps: list[float]) -> None:
    seconds = seconds_of(steps)
    assert list(early_stopped(present_of(rows), seconds).lengths) == by_hand(rows, seconds)


@given(blocks, rising)
def test_where_the_rate_has_one_peak_algorithm_1_finds_the_best_of_all_plans(rows: Rows, steps: list[float]) -> None:
    seconds = seconds_of(steps)
    survival = survival_of(rows)
    rates = rates_of(len(rows), present_of(rows).ranked()[0], seconds)
    peak = int(rates.argmax())
    assume((np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all())
    best = max(
        (len(rows) + sum(sum(row[:n]) for row, n in zip(survival, lengths, strict=True))) / seconds[sum(lengths)]
        for lengths in itertools.product(*(range(len(row) + 1) for row in rows))
    )
    lengths = early_stopped(present_of(rows), seconds).lengths
    found = len(rows) + sum(sum(row[:n]) for row, n in zip(survival, lengths, strict=True))
    assert found / seconds[sum(lengths)] == pytest.approx(best, rel=1e-12)


@given(blocks, rising)
def test_a_budget_is_the_best_of_all_numbers(rows: Rows, steps: list[float]) -> None:
    block = max(1, *map(len, rows))
    seconds = seconds_of(steps * 2)
    whole = [row + [0.5] * (block - len(row)) for row in rows]
    past, slots = Past.nothing(len(rows), block), np.arange(len(rows))
    past = past.after(present_of(whole), slots)
    budget = capacity(past, slots, seconds, literal=True)
    order = sorted((a for row in survival_of(whole) for a in row), reverse=True)
    rates = [(len(rows) + sum(order[:n])) / seconds[n] for n in range(len(order) + 1)]
    assert rates[budget.drafts] == pytest.approx(max(rates), rel=1e-12)
    assert budget.rate == pytest.approx(max(rates), rel=1e-12)


@given(blocks, st.integers(0, 20))
def test_a_budget_is_filled_with_the_most_certain_drafts(rows: Rows, budget: int) -> None:
    plan = admit(present_of(rows), Budget(budget, 1.0))
    order = sorted((-a, j, r) for r, row in enumerate(survival_of(rows)) for j, a in enumerate(row))
    assert plan.lengths == tuple(sum(r == owner for *_, owner in order[:budget]) for r in range(len(rows)))
    assert plan.drafts == min(budget, sum(map(len, rows)))


@given(blocks, rising, st.data())
def test_what_comes_later_never_changes_what_is_verified_before(rows: Rows, steps: list[float], data: Any) -> None:
    """Survival of a draft knows the token before it: changing x_k changes a_{k+1} and on, of its own request alone."""
    seconds = seconds_of(steps)
    r = data.draw(st.integers(0, len(rows) - 1))
    k = data.draw(st.integers(0, len(rows[r])))  # x_1..x_k stay, what follows is drafted anew
    rest = [data.draw(conditional) for _ in rows[r][k:]]
    other = [row[:k] + rest if i == r else row for i, row in enumerate(rows)]
    for before, after in zip(plans(rows, seconds), plans(other, seconds), strict=True):
        assert min(before.lengths[r], k) == min(after.lengths[r], k)


def test_control_a_search_over_the_present_block_fails_that_property() -> None:
    def searched(rows: Rows) -> Plan:
        present = present_of(rows)
        survival_N, whose_N = present.ranked()
        rates = rates_of(len(rows), survival_N, np.array([1.0, 2.0, 1 / 0.45]))
        return Plan.first(whose_N, int(rates.argmax()), len(rows))

    assert searched([[0.8, 0.9]]).lengths == (2,)
    assert searched([[0.8, 0.0]]).lengths == (0,), "App. A: x_1 itself decides whether it is verified"


@pytest.mark.parametrize("rows", [[], [[]], [[], []], [[0.0]], [[1.0]], [[], [1.0, 1.0], [0.0, 1.0]]], ids=str)
def test_nothing_to_plan_certain_and_hopeless_drafts_are_defined(rows: Rows) -> None:
    flat = np.ones(10)
    lengths = [next((k for k, c in enumerate(row) if c == 0), len(row)) for row in rows]
    assert list(early_stopped(present_of(rows), flat).lengths) == lengths, "free: whatever has a chance"
    assert list(worth_their_price(present_of(rows), 1.0, Prices.of(flat)).lengths) == lengths
    steep = 100.0 ** np.arange(10)
    assert early_stopped(present_of(rows), steep).drafts == 0
    assert worth_their_price(present_of(rows), 1.0, Prices.of(steep)).drafts == 0
    assert list(admit(present_of(rows), Budget(9, 1.0)).lengths) == [len(row) for row in rows]


def test_equal_survival_goes_by_position_and_then_by_request() -> None:
    present = Present.of([[1.0, 1.0, 1.0], [1.0, 1.0], [1.0]])
    expected = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 1), (3, 2, 1)]
    assert [admit(present, Budget(n, 1.0)).lengths for n in range(7)] == expected


def test_a_plan_says_what_each_draft_follows() -> None:
    assert Plan.chains([0, 1, 3]).parents == ((), (-1,), (-1, 0, 1))


@pytest.mark.parametrize(
    "rows", [[[0.5, 0.6]], [[1.5]], [[float("nan")]], [[0.9], [0.9, float("nan"), 0.2]], [[0.5, -0.1]]], ids=str
)
def test_what_is_no_survival_is_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="between 0 and 1 and never rise"):
        Present.of(rows)


def test_requests_may_have_drafted_more_or_less() -> None:
    present = Present.of([[0.5], [0.4, 0.2], []])
    assert (present.requests, present.drafts) == (3, 3)
    assert admit(present, Budget(9, 1.0)).lengths == (1, 2, 0)
    assert Past.nothing(3, 2).after(present, np.arange(3)).mean() == pytest.approx([0.45, 0.2])


@given(st.lists(st.lists(conditional, max_size=4), min_size=1, max_size=60))
def test_many_drafts_are_ranked_as_few_are(rows: Rows) -> None:
    present = present_of(rows)
    order = sorted((-a, k, r) for r, row in enumerate(present.rows) for k, a in enumerate(row))
    survival_N, whose_N = present.ranked()
    assert [*survival_N] == [-a for a, _, _ in order] and [*whose_N] == [r for _, _, r in order]


@pytest.mark.parametrize("seconds", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, float("inf"), 2.0], [1.0, float("nan"), 1.0]])
def test_seconds_that_are_none_are_refused(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="seconds of rounds"):
        early_stopped(Present.of([[0.5, 0.4]]), np.array(seconds))


def test_the_types_forbid_a_budget_to_see_the_present() -> None:
    chooses, ranks = get_type_hints(capacity), get_type_hints(admit)
    assert Present not in chooses.values() and Past in chooses.values()
    assert Past not in ranks.values() and ranks["budget"] is Budget


many = st.lists(st.lists(conditional, min_size=1, max_size=4), min_size=20, max_size=40)


@given(many, st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=160, max_size=160), st.sampled_from([0.1, 0.8]))
def test_arrays_plan_what_numbers_one_by_one_do(rows: Rows, steps: list[float], rate: float) -> None:
    """Many drafts and few go two ways; all that they decide is the same."""
    present, seconds, slots = present_of(rows), seconds_of(steps), np.arange(len(rows))
    past = Past.nothing(len(rows), 4).after(present, slots)
    found = []
    for few in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            for module in (plan, price, budget, past_module):
                patch.setattr(module, "FEW", few)
            fresh = replace(past)  # what it has found out is its own
            promised = [
                capacity(fresh, slots, seconds, k, literal=as_seen) for k in (2, 4) for as_seen in (True, False)
            ]
            chosen = [
                early_stopped(present, seconds),
                worth_their_price(present, rate, Prices.of(seconds)),
                admit(present, Budget(37, 1.0)),
            ]
            found.append((promised, chosen, convex_slopes(seconds)))
    (promised, chosen, slopes), others = found
    assert chosen == others[1]
    assert slopes == pytest.approx(others[2])
    for one, other in zip(promised, others[0], strict=True):
        assert one.rate == pytest.approx(other.rate)
        assert one.drafts == other.drafts or one.rate == pytest.approx(other.rate, rel=1e-12), "a tie in the last bit"


def test_a_convex_curve_keeps_its_slopes_and_a_stair_is_smoothed() -> None:
    convex = np.array([1.0, 1.1, 1.3, 1.6])
    assert convex_slopes(convex) == pytest.approx(np.diff(convex))
    stair = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert convex_slopes(stair) == pytest.approx([0.0, 0.5, 0.5, 0.5, 0.5])


@given(rising)
def test_slopes_are_those_of_the_greatest_convex_curve_below(steps: list[float]) -> None:
    seconds = seconds_of(steps)
    slopes = convex_slopes(seconds)
    below = seconds[0] + np.cumsum(np.concatenate(([0.0], slopes)))
    assert len(slopes) == len(steps) and (np.diff(slopes) >= -1e-12).all() and (below <= seconds + 1e-9).all()
    for n in range(len(seconds)):  # no higher one: each point lies on a chord of points of the curve
        chords = [
            seconds[a] + (seconds[b] - seconds[a]) * (n - a) / max(1, b - a)
            for a in range(n + 1)
            for b in range(n, len(seconds))
        ]
        assert below[n] == pytest.approx(min(chords), abs=1e-9)


@pytest.mark.parametrize("reading", [0.0, 1e-6], ids=["free", "nearly free"])
def test_a_stair_is_filled(reading: float) -> None:
    stair = np.array([1.0, 1.0, 1.0, 3.0, 3.0]) + reading * np.arange(5)
    present = Present.of([[0.5, 0.01, 0.01], [0.0]])
    assert worth_their_price(present, 1.0, Prices.of(stair)).lengths == (2, 0)


class TestPast:
    def test_nobody_drafted_yet(self) -> None:
        past = Past.nothing(2, 3)
        assert past.averaged(np.array([0, 1])).tolist() == [1.0] * 6
        idle = past.after(Present.of([[], []]), np.array([0, 1]))
        assert idle.averaged(np.array([0, 1])).tolist() == [1.0] * 6

    def test_what_all_have_shown_fades_while_nobody_drafts(self) -> None:
        past = Past.nothing(2, 1)
        for row in [[[0.9], [0.9]]] * 10 + [[[], []]] * 200 + [[[0.1], []]]:
            past = past.after(Present.of(row), np.array([0, 1]))
        assert 0.1 < past.mean()[0] < 0.25
        assert past.forgotten().as_last_seen(np.arange(2)) == pytest.approx([past.mean()[0]] * 2)

    def test_a_new_request_is_expected_to_be_like_the_others(self) -> None:
        past = Past.nothing(3, 2)
        for _ in range(50):
            past = past.after(Present.of([[0.9, 0.8], [0.3, 0.1]]), np.array([0, 1]))
        assert past.mean() == pytest.approx([0.6, 0.45])
        for expected in (past.averaged(np.arange(3)), past.as_last_seen(np.arange(3))):
            assert expected == pytest.approx([0.9, 0.8, 0.6, 0.45, 0.3, 0.1])

    @pytest.mark.parametrize("length", [None, 1, 2])
    def test_who_has_not_drafted_is_expected_to_be_the_mean(self, length: int | None) -> None:
        """As often as there are such requests, ranked; just as their last rounds have it, of which there are none."""
        past = Past.nothing(4, 3)
        for row in ([0.9, 0.8, 0.1], [0.7, 0.3], [0.5, 0.2, 0.2]):
            past = past.after(Present.of([row]), np.array([3]))
        for slots in (np.array([0]), np.arange(3)):
            expected = past.averaged(slots, length).tolist()
            assert expected == sorted([*past.mean()[:length]] * len(slots), reverse=True)
            assert expected == past.as_last_seen(slots, length).tolist()
        assert past.averaged(np.array([3]), length).tolist() != past.averaged(np.array([0]), length).tolist()

    def test_ranking_comes_before_averaging(self) -> None:
        """Two requests of which now one and now the other is sure: a budget of one goes to the sure one each time."""
        past = Past.nothing(2, 1)
        for step in range(8):
            past = past.after(Present.of([[0.9], [0.1]] if step % 2 else [[0.1], [0.9]]), np.arange(2))
        assert past.averaged(np.arange(2)) == pytest.approx([0.9, 0.1])
        assert past.averaged(np.array([0])) == pytest.approx([0.5]), "alone, its own average"

    def test_drafts_that_hardly_ever_stood_leave_numbers_behind(self) -> None:
        past = Past.nothing(1, 3)
        for row in ([1e-310, 1e-320, 0.0], [1e-310], [0.5], [0.5, 0.3]):
            past = past.after(Present.of([row]), np.array([0]))
            assert np.isfinite(past.mean()).all() and (np.diff(past.averaged(np.array([0]))) <= 0).all()

    def test_a_slot_forgets_who_had_it(self) -> None:
        past = Past.nothing(2, 1).after(Present.of([[0.9], [0.1]]), np.array([0, 1]))
        gone = past.without(np.array([0]))
        for expected in (gone.averaged, gone.as_last_seen):
            assert expected(np.array([0])) == pytest.approx(past.mean())
        assert gone.averaged(np.array([1])).tolist() == past.averaged(np.array([1])).tolist()

    def test_a_scheduler_forgets_a_slot_in_all_that_it_remembers(self) -> None:
        scheduler, slots = Scheduler(lambda r, d, n: np.ones(n + 1), "literal", delay=3), np.array([0, 1])
        memory = scheduler.begin(2, 1)
        tilts = Tilt(0.5), Tilt(-0.5)
        for ended in ([], [0]):
            memory = scheduler.after(memory, Present.of([[0.9], [0.1]]), slots, np.array(ended, dtype=int), tilts=tilts)
        assert not any(past.recent[0] for past in memory.pasts) and memory.steps == 2
        assert memory.tilts == (LEVEL, tilts[1])

    def test_positions_that_were_not_drafted_are_not_counted(self) -> None:
        past = Past.nothing(1, 3)
        for row in ([0.8, 0.6, 0.4], [0.8], [0.8]):
            past = past.after(Present.of([row]), np.array([0]))
        assert past.averaged(np.array([0])) == pytest.approx([0.8, 0.6, 0.4])


class TestGuard:
    def test_drafts_while_it_pays(self) -> None:
        assert Guard(margin=0.02).next_step(0.02, DRAFTING) == (True, Resting(drafted=1))

    def test_what_plain_steps_take_is_heard_of_while_it_pays(self) -> None:
        """The more often the less that costs, never for more than its share of the time, and often in the beginning."""
        row = Guard().row
        for gain, every in ((0.06, 96), (0.1, 160), (0.4, 640)):
            guard, resting, plain = Guard(), DRAFTING, 0
            for _ in range(10 * (every + row)):
                drafting, resting = guard.next_step(gain, resting, 10_000)
                assert drafting or not resting.rests, "the next one drafts again"
                plain += not drafting
            assert plain == 10 * row, "so many in a row"
        early = [guard.next_step(0.4, Resting(drafted=drafted), 90)[0] for drafted in (47, 48)]
        assert early == [True, False]
        later = [guard.next_step(0.4, Resting(drafted=drafted), 400)[0] for drafted in (199, 200)]
        assert later == [True, False], "half of what has gone on"
        doubtful = self.drafted(Guard(credit=9.0), [-0.01] * 150)
        assert [step for step, drafting in enumerate(doubtful) if not drafting] == [
            step for step in range(150) if step % (48 + row) >= 48
        ]

    def test_a_hard_stretch_is_sat_out_and_a_loss_is_not(self) -> None:
        guard, resting, drafted = Guard(margin=0.0, doubt=0.0), DRAFTING, []
        for gain in (-0.2, -0.2, 0.3, -0.2, -0.2, -0.2):
            drafting, resting = guard.next_step(gain, resting)
            drafted.append(drafting)
        assert drafted == [True] * 5 + [False], "what was lost comes back with what is gained"
        assert not guard.next_step(-0.6, DRAFTING)[0] and guard.next_step(-0.4, DRAFTING)[0]

    def test_few_rounds_say_little(self) -> None:
        """A gain of 15 per cent, promised with errors of 20 that last for four steps, as one user's rounds have them;
        without doubt a tenth of the time would be rest."""
        errors = np.repeat(np.random.default_rng(0).normal(0, 0.2, 500), 4)

        def rests(guard: Guard) -> float:
            resting, rested = DRAFTING, 0
            for error in errors.tolist():
                _, resting = guard.next_step(0.15 + error, resting)
                rested += resting.rests
            return rested / len(errors)

        assert rests(Guard()) < 0.02 and rests(Guard(doubt=0.0)) > 0.1
        doubts = [Guard().credit + Guard().doubt / requests for requests in (1, 64)]
        lasting = [sum(self.drafted(Guard(), [-0.1] * 40, requests)) for requests in (1, 64)]
        assert lasting == pytest.approx([doubt / 0.15 for doubt in doubts], abs=1), "many requests are believed sooner"

    @given(st.floats(0.0, 4.0), st.sampled_from([0.0, 0.005, 0.1, 0.3]), st.floats(-0.5, 0.2))
    def test_it_rests_no_shorter_than_it_says(self, lost: float, forgiven: float, gain: float) -> None:
        guard, resting = Guard(forgiven=forgiven), Resting(lost, rests=True)
        waits = guard.waits_for(gain, resting)
        for _ in range(min(waits, 1000)):
            drafting, resting = guard.next_step(gain, resting)
            assert not drafting and resting.rests
        assert gain < guard.margin or not waits, "no wait where so much is promised"
        assert guard.waits_for(gain, replace(resting, rests=False)) == 0
        if forgiven > 0 and gain < guard.margin:
            rested = [guard.next_step(gain, resting)]
            while not rested[-1][0]:
                rested.append(guard.next_step(gain, rested[-1][1]))
            assert len(rested) <= 3, "and hardly longer"

    def drafted(self, guard: Guard, gains: Sequence[float], requests: int = 1) -> list[bool]:
        resting, pattern = DRAFTING, []
        for gain in gains:
            drafting, resting = guard.next_step(gain, resting, 10_000, requests)
            pattern.append(drafting)
        return pattern

    def test_probes_where_nothing_is_known(self) -> None:
        drafting, resting = Guard().next_step(None, DRAFTING)
        assert drafting and resting.probing and not DRAFTING.probing

    def test_rests_probes_and_comes_back(self) -> None:
        guard = Guard(credit=0.0, doubt=0.0, forgiven=0.07)
        pattern = self.drafted(guard, [-0.1] * 17 + [0.5] * 3)
        assert [i for i, drafting in enumerate(pattern) if drafting] == [3, 9, 15, 17, 18, 19]

    def test_a_probe_goes_on_until_it_is_clear(self) -> None:
        """A small loss is looked at for many steps and a large one for few, and waited for by what it was."""
        guard = Guard(credit=0.5, doubt=0.0, forgiven=0.01)
        for gain, probe, wait in ((-0.05, 4, 51), (-0.2, 1, 51), (-0.95, 1, 201)):
            runs = [(drafting, len([*run])) for drafting, run in groupby(self.drafted(guard, [gain] * 1000))]
            assert set(runs[3:-1]) == {(True, probe), (False, wait)}
        woken = Resting(0.004, rests=True)
        gains = [guard.next_step(-0.1, woken)[1], guard.next_step(0.1, woken)[1]]
        assert [each.probing for each in gains] == [True, False], "what is promised to pay needs no probe"
        assert gains[0].woken and not guard.next_step(-0.1, gains[0])[1].woken

    @given(st.lists(st.floats(-1, 2), max_size=400), st.sampled_from([1, 4, 64]), st.sampled_from([0.0, 0.005, 0.05]))
    def test_what_drafting_is_promised_to_lose_is_bounded(
        self, gains: list[float], requests: int, forgiven: float
    ) -> None:
        """Whatever the promises, by a credit, or one step, and a share of the time."""
        guard = Guard(forgiven=forgiven)
        assert self.lost(guard, gains, requests) <= self.bound(guard, requests) + forgiven * len(gains) + 1e-9

    @pytest.mark.parametrize("gain", [-0.9, -0.1, 0.04])
    def test_control_and_no_less_is_lost_than_that(self, gain: float) -> None:
        guard = Guard()
        for steps in (1000, 8000):
            lost = self.lost(guard, [gain] * steps, 4)
            assert lost > 0.45 * guard.forgiven * steps

    def lost(self, guard: Guard, gains: Sequence[float], requests: int) -> float:
        pattern = self.drafted(guard, gains, requests)
        return sum(guard.margin - gain for gain, drafting in zip(gains, pattern, strict=True) if drafting)

    def bound(self, guard: Guard, requests: int) -> float:
        return max(guard.credit + guard.doubt / requests, 1 + guard.margin)


class TestScheduler:
    def scheduler(self, **changes: Any) -> Scheduler:
        sound = Scheduler(lambda r, d, n: 0.9 + 0.1 * (d > 0) + 0.1 * np.arange(n + 1.0))
        return replace(sound, **changes)

    def test_a_delayed_budget_knows_the_step_before_the_last(self) -> None:
        slots = np.array([0])
        for delay in (1, 2, 3):
            scheduler = self.scheduler(form="literal", delay=delay)
            memory, lengths = scheduler.begin(1, 2), []
            for row in ([1.0, 1.0], [0.01, 0.01], [0.01, 0.01], [0.01, 0.01]):
                present = Present.of([row])
                lengths.append(scheduler.plan(memory, present, slots).drafts)
                memory = scheduler.after(memory, present, slots, ended=slots[:0])
            assert lengths == [2] * (delay + 1) + [0] * (3 - delay)

    @pytest.mark.parametrize("form", ["averaged", "literal"])
    @pytest.mark.parametrize(("stood", "verified"), [(0.9, 2), (0.01, 0)])
    def test_a_budget_has_room_for_copies_where_drafts_have_stood(
        self, form: Form, stood: float, verified: int
    ) -> None:
        """Whoever copies is not asked to draft; all of a step, or one of two."""
        scheduler, slots = self.scheduler(form=form, delay=2), np.arange(2)
        memory = scheduler.begin(2, 2)
        for _ in range(8):
            memory = scheduler.after(memory, Present.of([[stood, stood**2]] * 2), slots, slots[:0])
        copies = Present.of([[0.9, 0.9]] * 2)
        for present, asked in ((copies, slots[:0]), (copies, slots[:1]), (Present.of([[], [0.9, 0.9]]), slots[:0])):
            plan = scheduler.plan(memory, present, slots, asked)
            assert plan.drafts == min(present.drafts, verified * sum(map(bool, present.rows)))

    @pytest.mark.parametrize("form", ["price", "averaged", "literal"])
    def test_what_is_worked_out_ahead_is_what_would_have_been_found_in_time(self, form: Form) -> None:
        """With rests, requests that end and blocks of several lengths; without a delay nothing is known ahead."""
        guard = Guard(credit=0.0, doubt=0.0, forgiven=0.1, heard=4, row=2)
        scheduler = self.scheduler(form=form, delay=2, guard=guard, lengths=(1, 2, 3))
        numbers, adopted, priced = np.random.default_rng(0), 0, list[tuple[int, ...]]()
        eager = replace(scheduler, seconds=lambda *sizes: (priced.append(sizes), scheduler.seconds(*sizes))[1])
        early = late = scheduler.begin(4, 3)
        for step in range(60):
            slots = np.arange(4 if step % 7 else 3)
            given = early.promise
            priced.clear()
            asked, early = eager.drafts(early, slots)
            if given is not None and (given.requests, given.step) == (len(slots), step):
                adopted += 1
                assert not priced, "nothing is worked out twice"
            expected, late = scheduler.drafts(late, slots)
            assert (early.promise, early.asks, asked.tolist()) == (late.promise, late.asks, expected.tolist())
            rows = [np.sort(numbers.random(early.asks) ** (0.3 if step < 40 else 5))[::-1] for _ in slots]
            present = Present.of([row.tolist() if i in asked else [] for i, row in zip(slots, rows, strict=True)])
            plans = [scheduler.plan(memory, present, slots, asked) for memory in (early, late)]
            assert plans[0] == plans[1]
            if len(asked):
                early = eager.ahead(early, slots)
            ended = slots[:1] if step % 5 == 4 else slots[:0]
            early, late = (scheduler.after(memory, present, slots, ended) for memory in (early, late))
        assert adopted > 20
        prompt = replace(scheduler, delay=1)
        memory = prompt.after(prompt.begin(4, 3), Present.of([[0.9]]), np.arange(1), np.arange(0))
        assert prompt.ahead(memory, np.arange(4)).coming is None

    def test_a_promise_holds_for_some_steps_and_for_few_changes(self) -> None:
        """Not behind a probe, and not where many of its requests have ended."""
        slots, priced = np.arange(16), list[int]()

        def seconds(requests: int, drafted: int, drafts: int) -> Numbers:
            priced.append(drafted)
            return 0.9 + 0.1 * (drafted > 0) + 0.01 * np.arange(drafts + 1.0)

        scheduler = self.scheduler(form="price", guard=Guard(heard=100), seconds=seconds, holds=4)

        def step(memory: Memory, ended: int) -> Memory:
            priced.clear()
            asked, memory = scheduler.drafts(memory, slots)
            present = Present.of([[0.9, 0.8] if i in asked else [] for i in slots])
            return scheduler.after(memory, present, slots, ended=slots[:ended])

        memory = step(scheduler.begin(16, 2), 0)
        assert memory.promise is None and not priced, "a probe, from which nothing was promised before"
        for ended, worked_out in ((0, 2), (2, 0), (1, 0), (0, 0), (0, 2), (3, 0), (0, 2)):
            memory = step(memory, ended)
            assert len(priced) == worked_out, "of steps with drafts and of plain ones"

    @pytest.mark.parametrize("dear", [True, False], ids=["dear drafts", "a dear step"])
    def test_a_guarded_scheduler_rests_where_drafts_do_not_pay(self, dear: bool) -> None:
        """A probe asks one of a few, and all where a step with drafts is dear whoever they are of."""

        def seconds(requests: int, drafted: int, drafts: int) -> Numbers:
            return 0.9 + (0.05 * drafted if dear else 0.2 * (drafted > 0)) + 0.1 * np.arange(drafts + 1.0)

        slots = np.array([0, 1])
        scheduler = self.scheduler(guard=HASTY, seconds=seconds)
        memory, drafted = scheduler.begin(2, 2), []
        for _ in range(9):
            asked, memory = scheduler.drafts(memory, slots)
            drafted.append(asked.tolist())
            present = Present.of([[0.05, 0.01] if i in asked else [] for i in slots])
            memory = scheduler.after(memory, present, slots, ended=slots[:0])
        assert drafted == [[0], [], [], [], [], [1] if dear else [0, 1], [], [], []], "and one comes first of all"

    def test_at_rest_a_promise_holds_for_about_as_many(self) -> None:
        """Prices are asked for again where a quarter of the requests have gone, and not because one came or went."""
        priced = list[int]()

        def seconds(requests: int, drafted: int, drafts: int) -> Numbers:
            priced.append(requests)
            return 0.9 + 0.9 * (drafted > 0) + 0.1 * np.arange(drafts + 1.0)

        scheduler = self.scheduler(form="price", guard=replace(HASTY, forgiven=0.001), seconds=seconds)
        memory, asked_again = scheduler.begin(16, 2), list[bool]()
        for requests in (16, 16, 15, 16, 15, 15, 12, 12, 11):
            priced.clear()
            slots = np.arange(requests)
            asked, memory = scheduler.drafts(memory, slots)
            asked_again.append(bool(priced))
            present = Present.of([[0.05, 0.01] if i in asked else [] for i in slots])
            memory = scheduler.after(memory, present, slots, ended=slots[:0])
        assert memory.resting.rests and not asked.size
        assert asked_again == [False, True, False, False, False, False, True, False, False]

    @pytest.mark.parametrize("delay", [1, 2, 3])
    @pytest.mark.parametrize("most", [1, 2, 3, 100])
    def test_a_rest_at_once_is_what_its_steps_come_to(self, delay: int, most: int) -> None:
        slots, nobody = np.arange(4), Present.of([()] * 4)
        guard = Guard(credit=0.0, doubt=0.0)
        scheduler = self.scheduler(form="price", delay=delay, guard=guard, lengths=(1, 2), seconds=self.dear)
        memory, rests = scheduler.begin(4, 2), list[int]()
        for step in range(12):
            asked, memory = scheduler.drafts(memory, slots)
            present = Present.of([[0.2 / (1 + step), 0.01] if i in asked else [] for i in slots])
            memory = scheduler.after(memory, present, slots, ended=slots[:0])
            rests.append(min(most, scheduler.rests_for(memory, 4)))
            one_by_one = memory
            for _ in range(rests[-1]):
                asked, one_by_one = scheduler.drafts(one_by_one, slots)
                assert not len(asked)
                one_by_one = scheduler.after(one_by_one, nobody, slots, ended=slots[:0])
            memory = scheduler.rested(memory, rests[-1])
            assert memory.resting.lost == pytest.approx(one_by_one.resting.lost)
            for found, expected in zip(memory.pasts, one_by_one.pasts, strict=True):
                assert (found.weight, found.total) == tuple(
                    pytest.approx(each) for each in (expected.weight, expected.total)
                )
            alike = {"resting": one_by_one.resting, "pasts": one_by_one.pasts}
            assert replace(memory, **alike) == one_by_one
        assert sum(map(bool, rests)) >= 4 and (max(rests) > 20 or most < 100)

    @staticmethod
    def dear(requests: int, drafted: int, drafts: int) -> Numbers:
        return 0.9 + 0.2 * drafted + 0.1 * np.arange(drafts + 1.0)

    def test_blocks_are_as_long_as_pays(self) -> None:
        """Short where a draft is dear, long where it costs little, and all are compared again when the load changes."""

        def seconds(requests: int, drafted: int, drafts: int) -> Numbers:
            return 1.0 + 0.05 * max(0, requests - 1) + 0.03 * drafted + 0.02 * np.arange(drafts + 1.0)

        scheduler = self.scheduler(guard=Guard(heard=100), seconds=seconds, lengths=(1, 2, 4))
        memory, asks = scheduler.begin(16, 4), []
        for step in range(48):
            slots = np.arange(16 if step < 24 else 1)
            asked, memory = scheduler.drafts(memory, slots)
            asks.append(memory.asks)
            row = [0.7, 0.45, 0.3, 0.2][: memory.asks]
            present = Present.of([row if i in asked else [] for i in slots])
            memory = scheduler.after(memory, present, slots, ended=slots[:0])
        assert asks[0] == 4, "nothing is known"
        assert asks[1:24] == [1] * 23 and asks[32:] == [4] * 16

    def test_longer_blocks_come_back_when_texts_become_easier(self) -> None:
        """Now and then a longer one is looked at, and behind what is reached the next position is thought better of."""

        def seconds(requests: int, drafted: int, drafts: int) -> Numbers:
            return 1.0 + 0.05 * max(0, requests - 1) + 0.03 * drafted + 0.02 * np.arange(drafts + 1.0)

        for requests, hard, easy in ((16, 1, 7), (1, 3, 7)):
            scheduler = self.scheduler(guard=Guard(heard=100), seconds=seconds, lengths=(1, 2, 3, 5, 7))
            memory, slots, asks = scheduler.begin(requests, 7), np.arange(requests), []
            for step in range(600):
                asked, memory = scheduler.drafts(memory, slots)
                asks.append(memory.asks)
                row = [(0.45 if step < 150 else 0.95) ** k for k in range(1, memory.asks + 1)]
                present = Present.of([row if i in asked else [] for i in slots])
                memory = scheduler.after(memory, present, slots, ended=slots[:0])
            assert asks[140] <= hard and asks[-1] == easy

    def test_a_probe_that_finds_good_drafts_wakes_everybody(self) -> None:
        def seconds(requests: int, drafting: int, drafts: int) -> Numbers:
            return 0.9 + 0.004 * drafting + 0.02 * np.arange(drafts + 1.0)

        slots = np.arange(16)
        scheduler = self.scheduler(guard=HASTY, seconds=seconds)
        memory, drafted = scheduler.begin(16, 2), []
        for _ in range(12):
            asked, memory = scheduler.drafts(memory, slots)
            drafted.append(len(asked))
            good = len(drafted) > 4
            present = Present.of([([0.95, 0.9] if good else [0.05, 0.01]) if i in asked else [] for i in slots])
            memory = scheduler.after(memory, present, slots, ended=slots[:0])
        assert drafted[:7] == [2, 0, 0, 0, 2, 16, 16]
