"""Algorithm 1 for one request against brute force, and the measurement that feeds it on a machine made of numbers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.decoding.pace import SETTLED
from dspark.decoding.profile import REPEATS, WARM_UP, measure, measure_blocks, rising, time_rounds
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, untouched
from dspark.speculation.planner.single import (
    _CREDIT,
    _FADING,
    EarlyStop,
    WhileItPays,
    best_slots,
    early_stop,
    with_slots,
    without_a_clock,
)
from dspark.speculation.sampling import Sampling
from tiny import tiny_drafter, tiny_target

CONDITIONAL = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@given(conditional=CONDITIONAL, first=st.floats(0.01, 10), token=st.floats(0, 2))
def test_on_a_straight_cost_line_the_first_stop_is_the_best_length(
    conditional: list[float], first: float, token: float
) -> None:
    survival = list(itertools.accumulate(conditional, lambda a, c: a * c))
    seconds = [first + token * length for length in range(len(survival) + 1)]
    rates = [(1 + sum(survival[:length])) / seconds[length] for length in range(len(survival) + 1)]
    chosen = early_stop(survival, seconds)
    assert rates[chosen] == pytest.approx(max(rates), rel=1e-12)
    assert not any(rate >= rates[chosen] * (1 + 1e-12) for rate in rates[:chosen]), "no shorter one is as good"


@given(conditional=CONDITIONAL, change=st.floats(0, 1), at=st.integers(0, 6))
def test_a_later_confidence_never_decides_about_an_earlier_draft(
    conditional: list[float], change: float, at: int
) -> None:
    seconds = [1 + 0.3 * length**1.5 for length in range(len(conditional) + 1)]
    other = [*conditional[:at], *([change] * (len(conditional) - at))]
    lengths = [early_stop(list(itertools.accumulate(c, lambda a, b: a * b)), seconds) for c in (conditional, other)]
    # c_k for k >= at differ: whether a draft before them is verified does not
    assert min(lengths[0], at) == min(lengths[1], at)


@given(
    conditional=CONDITIONAL,
    plain=st.floats(1, 10),
    draft=st.tuples(st.floats(0, 5), st.floats(0, 1)),
    tokens=st.lists(st.floats(0, 3), min_size=7, max_size=7),
)
def test_the_block_is_the_one_that_yields_most_tokens_a_second(
    conditional: list[float], plain: float, draft: tuple[float, float], tokens: list[float]
) -> None:
    survival, block = list(itertools.accumulate(conditional, lambda a, c: a * c)), len(conditional)
    verified = list(itertools.accumulate(tokens[:block], initial=plain))

    def rounds(k: int) -> list[float]:
        return [draft[0] + draft[1] * k + each for each in verified]

    for k in range(1, block + 1):
        assert with_slots(rounds(block), rounds(1)[0], k) == pytest.approx(rounds(k))
    slots = best_slots(survival, rounds(block), rounds(1)[0])
    rates = [(1 + sum(survival[:k])) / rounds(k)[k] for k in range(1, block + 1)]
    assert rates[slots - 1] == pytest.approx(max(rates), rel=1e-9)


def test_where_drafts_cost_nothing_the_block_is_whole() -> None:
    assert best_slots([0.5, 0.1, 0.0], (1.0,) * 4, 1.0) == 3
    assert best_slots([0.0], (1.0, 2.0), 1.0) == 1


def test_without_confidence_every_draft_is_verified() -> None:
    plan = EarlyStop((1.0, 5.0, 9.0))
    assert plan(2, None) == 2
    assert plan(2, [0.9, 0.8]) == 0
    assert EarlyStop((1.0, 1.0, 1.0))(2, [0.1, 0.01]) == 2


@pytest.mark.parametrize("seconds", [(), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_costs_that_are_none_are_refused(seconds: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="seconds"):
        EarlyStop(seconds)


PLAIN, PLAIN_ROW = 2.0, SETTLED[False] + 2


class Machine:
    """Plain steps and rounds that verify 0..``block`` drafts in turn, and the clock that moves with their work; some
    are disturbed.
    """

    def __init__(self, price: Callable[[int], float], block: int = 3) -> None:
        self.time, self.price, self.block = 0.0, price, block

    def __call__(self) -> float:
        return self.time

    def rounds(self, count: int) -> Iterator[Round]:
        self.time += 100.0  # the prompt
        yield Round(0, (1,), 0, 0, 0, None)
        for index in range(count):
            turn, at = divmod(index, PLAIN_ROW + self.block + 1)  # the first plain steps take longer
            length = max(-1, at - PLAIN_ROW)
            disturbed = 50.0 if turn == 0 or index == 19 else 1.0 if at < SETTLED[False] else 0.0
            self.time += (PLAIN if length < 0 else self.price(length)) + disturbed
            yield Round(index + 1, (1,), 0 if length < 0 else self.block, max(0, length), 0, None)
        self.time += 70.0
        yield Round(count + 1, (1,), 0, 0, 0, "length")


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (lambda length: 3 + 0.5 * length, (3.0, 3.5, 4.0, 4.5)),
        (lambda length: 3.0 if length < 2 else 5.0, (3.0, 3.0, 5.0, 5.0)),
        (lambda length: 3 - 0.5 * length, (2.25,) * 4),
        (lambda length: (3.0, 5.0, 4.0, 6.0)[length], (3.0, 4.5, 4.5, 6.0)),
    ],
    ids=["line", "stairs", "falling", "noise"],
)
def test_the_measurement_finds_what_rounds_cost(price: Callable[[int], float], expected: tuple[float, ...]) -> None:
    machine = Machine(price)
    found = time_rounds(machine.rounds((PLAIN_ROW + 4) * (WARM_UP + REPEATS)), 3, machine)
    assert found.known and found.plain == PLAIN and found.rounds == pytest.approx(expected)


def test_a_context_too_short_to_measure_in_verifies_everything() -> None:
    machine = Machine(lambda length: 3.0 + length)
    found = time_rounds(machine.rounds(7 * WARM_UP), 3, machine)
    assert not found.known and len(found.rounds) == 4
    assert EarlyStop(found.rounds)(3, [0.5, 0.1, 0.01]) == 3


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_the_rising_sequence_is_the_nearest(values: list[float]) -> None:
    found = rising(values)
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(values)) and rising(found) == pytest.approx(found)
    distance = sum((a - b) ** 2 for a, b in zip(found, values, strict=True))
    for other in ([max(values[: i + 1]) for i in range(len(values))], [min(values[i:]) for i in range(len(values))]):
        assert distance <= sum((a - b) ** 2 for a, b in zip(other, values, strict=True)) + 1e-9


def history(*tokens: int, verified: int = 2, source: Source = "drafter") -> list[Round]:
    """Prefill, then rounds of so many tokens; 0 stands for a plain step."""
    prefill = Round(0, (7,), 0, 0, 0, None)
    rounds = [
        Round(1, (7,) * (n or 1), 2 if n else 0, verified if n else 0, max(0, n - 1), None, source) for n in tokens
    ]
    return [prefill, *rounds]


RULE = WhileItPays((1.4, 1.7, 2.0), 1.0)


def pays(rounds: Sequence[Round], source: Source = "drafter") -> bool:
    return RULE(rounds, source)


def test_drafting_goes_on_while_it_pays() -> None:
    assert pays(history()), "there is a credit to begin with"
    assert pays(history(*[2] * 9)), "as fast as plain steps"
    assert not pays(history(1)) and pays(history(3)) and pays(history(3, 1)), "a gain pays for a loss"
    assert not pays(history(3, 1, 1, 1))
    assert pays(history(*[1] * 9, *[3] * 9)) and not pays(history(*[3] * 9, *[1] * 18)), "old rounds fade"
    assert pays(history(*[1] * 9, *[0] * 200)), "and are forgotten"


def test_what_did_not_pay_is_tried_again_after_a_while() -> None:
    def until(*tokens: int) -> int:
        """Plain rounds before the next try."""
        return next(plain for plain in range(100) if pays(history(*tokens, *[0] * plain)))

    assert 0 == until() < until(1) < until(1, 1) < until(1, 1, 1)
    tries, rounds = 0, [1]
    for _ in range(300):
        drafts = pays(history(*rounds))
        tries += drafts
        rounds.append(1 if drafts else 0)
    # Every failed try loses a whole plain step here: one in so many rounds that its loss has faded to the credit.
    expected = math.log(_CREDIT / (_CREDIT + 1)) / math.log(_FADING)
    assert 300 / tries == pytest.approx(expected, rel=0.1)


def test_the_decision_is_the_faded_sum() -> None:
    made = random.Random(0)
    for _ in range(200):
        tokens = [made.choice([0, 0, 1, 2, 3]) for _ in range(made.randrange(60))]
        balance = _CREDIT
        for n in tokens:
            balance = _CREDIT + (balance - _CREDIT) * _FADING + (n - 2.0 if n else 0.0)
        assert abs(balance) < 1e-6 or pays(history(*tokens)) == (balance >= 0), tokens


def test_a_copy_is_not_charged_for_drafting() -> None:
    dear = WhileItPays((2.4, 2.7, 3.0), 1.0)
    copied, drafted = (history(*[2] * 4, source=source) for source in ("lookup", "drafter"))
    assert dear(copied, "lookup") and not dear(drafted, "drafter")


def test_copies_and_drafts_have_credits_of_their_own() -> None:
    copied, drafted = history(1, 1, source="lookup"), history(1, 1)
    assert not pays(copied, "lookup") and pays(copied, "drafter")
    assert not pays(drafted, "drafter") and pays(drafted, "lookup")


@pytest.mark.parametrize("prices", [((), 1.0), ((1.0, 0.0), 1.0), ((1.0,), -1.0), ((1.0,), float("inf"))])
def test_prices_that_are_none_are_refused(prices: tuple[tuple[float, ...], float]) -> None:
    with pytest.raises(UserError, match="expected positive numbers"):
        WhileItPays(*prices)


def test_without_a_clock_blocks_are_as_long_as_a_checkpoint_says() -> None:
    assert without_a_clock(7, [0.58, 0.33, 0.19, 0.1]).draft_slots == 2
    assert without_a_clock(7, [0.9**k for k in range(1, 8)]).draft_slots is None, "whole"
    assert without_a_clock(7, []).draft_slots is None, "nobody knows"
    assert without_a_clock(1, [0.2]).draft_slots is None
    assert without_a_clock(7, [0.58, 0.33]) == without_a_clock(7, [0.58, 0.33]), "the same everywhere"
    sparing, generous = (without_a_clock(7, [0.6**k for k in range(1, 8)], shared) for shared in (False, True))
    assert (sparing.draft_slots or 7) < (generous.draft_slots or 7), "where rows cost little more are worth verifying"


def test_a_sampling_whose_acceptance_was_counted_is_planned_by_it() -> None:
    samplings = Sampling(), Sampling(1.0), Sampling(0.2, top_p=0.9)
    maps = {each: untouched(7) for each in samplings}
    counted = dict(zip(samplings, ((0.9,) * 7, (0.4, 0.2, 0.1), (0.75, 0.6, 0.5, 0.4)), strict=True))
    planning = without_a_clock(7, [0.9**k for k in range(1, 8)], calibrations=Calibrations(maps, counted))
    doubted, believed = (planning.of(each) for each in samplings[1:])
    assert doubted.draft_slots == 2 and planning.of(Sampling(0.9)) is doubted
    assert believed.draft_slots == 4 and planning.of(Sampling(0.3)) is believed
    assert planning.of(Sampling()) is planning and planning.draft_slots is None
    assert doubted.calibrations == believed.calibrations == planning.calibrations
    # Where even the best block loses on average, one loss is enough to doubt for longer.
    plain, lost = Round(0, (7,), 0, 0, 0, None), Round(1, (7,), 2, 2, 0, None)
    loss = [plain, lost, *[plain] * 60]
    rests = [[plan.when(loss[:n], "drafter") for n in range(2, 60)].index(True) for plan in (believed, doubted)]
    assert 5 < rests[0] < 15 and rests[1] > 40
    copied = [replace(each, source="lookup") for each in loss]
    assert all(doubted.when(copied[:n], "lookup") == believed.when(copied[:n], "lookup") for n in range(2, 60))


def test_the_core_is_measured_in_every_kind_of_round() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target)
    drafter.pack()
    whole = measure(target, drafter)
    assert whole.known and whole.plain > 0 and len(whole.rounds) == drafter.config.block_size + 1
    slots, own = measure_blocks(target, drafter, whole, [0.01] * drafter.config.block_size)
    assert slots is None or 1 <= slots < drafter.config.block_size
    assert own.plain == whole.plain and len(own.rounds) == len(whole.rounds), "copies may be longer than drafts"
    assert measure_blocks(target, drafter, whole, []) == (None, whole)
