"""Confidence of one round, read a number at a time, is what the maps say of many at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.speculation.confidence import (
    ConfidenceMap,
    Isotonic,
    Logistic,
    Platt,
    Temperatures,
    chances,
    sigmoid,
)
from dspark.speculation.recalibration import Outcome, Recalibration

SLOTS = 3
MAPS: list[ConfidenceMap] = [
    Temperatures((0.5, 1.0, 2.0)),
    Platt((0.5, 1.0, -2.0), (0.0, 1.0, -1.0)),
    Logistic((0.5, 1.0, -25.0), (0.2, -0.3, 15.0), (0.0, 1.0, -1.0)),
    Isotonic(((-1.0, 2.0),) * SLOTS, ((0.1, 0.9),) * SLOTS),
]
numbers = st.floats(-40, 40)
rounds = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=SLOTS)


@pytest.mark.parametrize("through", MAPS, ids=lambda each: each.kind)
@given(round=rounds)
def test_one_round_is_read_as_many_are(through: ConfidenceMap, round: list[tuple[float, float]]) -> None:
    logits, peaks = map(list, zip(*round, strict=True))
    many = through.conditional(np.array([logits] * 2), np.array([peaks] * 2))
    assert chances(through, logits, peaks) == pytest.approx(many[0].tolist(), rel=1e-9, abs=1e-300)


@given(logits=st.lists(numbers, min_size=1, max_size=9))
def test_as_it_was_trained(logits: list[float]) -> None:
    assert chances(None, logits) == pytest.approx(sigmoid(np.array(logits)).tolist(), rel=1e-12)


def test_a_map_that_says_no_with_all_its_might_is_heard() -> None:
    assert chances(Logistic((1e3,), (0.0,), (0.0,)), [-15.0], [0.0]) == [0.0]
    assert chances(None, [-1e5, 1e5]) == [0.0, 1.0]


def test_more_slots_than_a_map_knows_are_refused() -> None:
    for through in MAPS:
        with pytest.raises(ValueError, match="3 slots was given the logits of 4"):
            chances(through, [0.0] * 4, [0.0] * 4)


def test_drafts_of_any_lengths_teach_what_their_slots_do() -> None:
    start = Recalibration.begin(Logistic((1.0,) * SLOTS, (0.0,) * SLOTS, (0.0,) * SLOTS))
    short, long = Outcome([0.5], [1.0], 1, 1), Outcome([0.5, -0.2, 0.1], [1.0, 0.3, 2.0], 3, 2)
    together = start.with_outcomes([short, long])
    arrays = np.array([[[0.5, 0, 0], long.logits], [[1.0, 0, 0], long.peaks]])
    np.testing.assert_array_equal(together.weights, start.after(*arrays, np.array([1, 3]), np.array([1, 2])).weights)
    assert (start.with_outcomes([short]).weights[1:] == start.weights[1:]).all()
