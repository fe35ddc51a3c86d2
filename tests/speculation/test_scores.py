"""Scores of predictions: against their definitions, and that none of them is won by what should not win it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.speculation.scores import Scores, auc, bins_of, ece, log_loss, perfect_ece

predictions = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1)


def split(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in rows]), np.array([y for _, y in rows], dtype=bool)


@given(predictions)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a, ya in rows for b, yb in rows if ya and not yb]
    found = auc(*split(rows))
    assert found == pytest.approx(np.mean(pairs)) if pairs else math.isnan(found)


@given(predictions, st.integers(1, 15))
def test_bins_are_of_equal_mass_and_keep_equal_predictions_together(rows: list[tuple[float, bool]], bins: int) -> None:
    p, _ = split(rows)
    bin_N = bins_of(p, bins)
    assert bin_N.min() >= 0 and bin_N.max() < bins
    for a, i in zip(p, bin_N, strict=True):
        for b, j in zip(p, bin_N, strict=True):
            assert (a != b) or i == j
            assert (a >= b) or i <= j


def test_bins_of_different_predictions_are_equally_full() -> None:
    assert np.bincount(bins_of(np.random.default_rng(0).random(1500))).tolist() == [100] * 15


def test_calibration_error_by_hand() -> None:
    p, y = np.array([0.1, 0.1, 0.8, 0.8]), np.array([0.0, 1.0, 1.0, 1.0])
    assert ece(p, y, 2) == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)


def test_a_constant_wins_the_calibration_error_and_nothing_else() -> None:
    numbers = np.random.default_rng(0)
    truth = numbers.random(20_000)
    happened = numbers.random(20_000) < truth
    constant = Scores.of(np.full(20_000, happened.mean()), happened)
    known = Scores.of(truth, happened)
    assert constant.ece < 1e-12 < known.ece
    assert known.brier < constant.brier and known.log_loss < constant.log_loss
    assert constant.auc == 0.5 and known.auc > 0.8


def test_a_perfect_predictor_shows_the_error_that_is_foretold() -> None:
    numbers = np.random.default_rng(1)
    for count in (500, 5000):
        p = numbers.random(count)
        shown = np.mean([ece(p, (numbers.random(count) < p).astype(float)) for _ in range(50)])
        assert perfect_ece(p) == pytest.approx(shown, rel=0.1)
    overconfident = np.sqrt(p)
    assert ece(overconfident, (numbers.random(count) < p).astype(float)) > 3 * perfect_ece(overconfident)


def test_log_loss_of_certain_mistakes_is_large_and_finite() -> None:
    assert 10 < log_loss(np.array([1.0]), np.array([0.0])) < 20
    assert log_loss(np.array([0.5]), np.array([1.0])) == pytest.approx(math.log(2))


def test_nothing_has_no_score() -> None:
    nothing = Scores.of(np.zeros(0), np.zeros(0, dtype=bool))
    assert nothing.count == 0 and math.isnan(nothing.brier)
