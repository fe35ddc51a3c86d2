"""Confidence maps: fits find what was there, maps keep the order, and what they store they are again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dspark.calibration.fits import fit_isotonic, fit_logistic, fit_platt, fit_temperatures
from dspark.calibration.outcomes import Numbers, Outcomes
from dspark.foundation.errors import UserError
from dspark.speculation.confidence import ConfidenceMap, Platt, as_json, from_json, sigmoid, untouched
from dspark.speculation.scores import ece, log_loss

BLOCK = 4


def outcomes_of(
    count: int, slope: float, offset: float = 0.0, seed: int = 0, most: int = BLOCK, spread: float = 1.5
) -> Outcomes:
    """Rounds whose drafts stand with ``sigmoid(slope * logit + offset)``, of which ``most`` are verified."""
    numbers = np.random.default_rng(seed)
    logits = numbers.normal(0.5, spread, (count, BLOCK))
    stands = numbers.random((count, BLOCK)) < sigmoid(slope * logits + offset)
    verified = numbers.integers(0, most + 1, count) if most < BLOCK else np.full(count, BLOCK)
    accepted = np.minimum(stands.cumprod(axis=1).sum(axis=1), verified)
    return without_peaks(logits, verified, accepted)


def without_peaks(logits: Numbers, verified: NDArray[np.int64], accepted: NDArray[np.int64]) -> Outcomes:
    return Outcomes(logits, np.zeros_like(logits), verified, accepted)


def conditional_loss(calibration: ConfidenceMap, outcomes: Outcomes) -> float:
    c, seen = outcomes.through(calibration), outcomes.observed
    return log_loss(c[seen], outcomes.stood[seen].astype(float))


@pytest.mark.parametrize("slope", [0.4, 1.0, 2.0])
def test_sequential_temperatures_find_the_temperature(slope: float) -> None:
    fitted = fit_temperatures(outcomes_of(20_000, slope))
    assert fitted.temperatures[0] == pytest.approx(1 / slope, rel=0.15)
    fresh = outcomes_of(20_000, slope, seed=1)
    survival = fitted.conditional(fresh.logits).cumprod(axis=1)
    raw = untouched(BLOCK).conditional(fresh.logits).cumprod(axis=1)
    for k in range(BLOCK):
        error = ece(survival[:, k], fresh.stood[:, k].astype(float))
        assert error < 0.015
        assert slope == 1.0 or error < 0.5 * ece(raw[:, k], fresh.stood[:, k].astype(float))


def test_sequential_temperatures_are_the_best_of_their_grid_one_after_the_other() -> None:
    outcomes = outcomes_of(500, 0.6, 0.5)
    fitted, before = fit_temperatures(outcomes), np.ones(500)
    for k, t in enumerate(fitted.temperatures):
        stood = outcomes.stood[:, k].astype(float)
        best = ece(before * sigmoid(outcomes.logits[:, k] / t), stood)
        for other in np.geomspace(0.1, 10, 161):
            assert best <= ece(before * sigmoid(outcomes.logits[:, k] / other), stood)
        before = before * sigmoid(outcomes.logits[:, k] / t)


@pytest.mark.parametrize("most", [BLOCK, 2], ids=["whole", "trimmed"])
def test_platt_finds_slope_and_offset_in_whole_and_in_trimmed_rounds(most: int) -> None:
    fitted = fit_platt(outcomes_of(40_000, 0.7, -0.4, most=most))
    assert fitted.slopes[:2] == pytest.approx([0.7] * 2, abs=0.06)
    assert fitted.offsets[:2] == pytest.approx([-0.4] * 2, abs=0.06)
    if most < BLOCK:
        assert fitted.slopes[2:] == (1.0, 1.0) and fitted.offsets[2:] == (0.0, 0.0), "never seen: as it was"


def test_control_counting_drafts_that_were_not_verified_as_rejected_is_wrong() -> None:
    trimmed = outcomes_of(40_000, 0.7, -0.4, most=2)
    careless = fit_platt(without_peaks(trimmed.logits, np.full(40_000, BLOCK), trimmed.accepted))
    assert abs(careless.offsets[1] + 0.4) > 0.3


def test_platt_is_where_the_likelihood_is_greatest() -> None:
    outcomes = outcomes_of(5000, 0.5, 0.8)
    fitted = fit_platt(outcomes)
    best = conditional_loss(fitted, outcomes)
    for change in (-0.05, 0.05):
        assert conditional_loss(Platt(tuple(s + change for s in fitted.slopes), fitted.offsets), outcomes) > best
        assert conditional_loss(Platt(fitted.slopes, tuple(o + change for o in fitted.offsets)), outcomes) > best


@pytest.mark.parametrize("most", [BLOCK, 2], ids=["whole", "trimmed"])
def test_a_logistic_map_weighs_what_the_head_says_and_how_sure_the_drafter_is(most: int) -> None:
    numbers, count = np.random.default_rng(0), 40_000
    logits, peaks = numbers.normal(0.5, 1.5, (2, count, BLOCK))
    stands = numbers.random((count, BLOCK)) < sigmoid(0.3 * logits + 0.8 * peaks - 0.4)
    verified = numbers.integers(0, most + 1, count) if most < BLOCK else np.full(count, BLOCK)
    outcomes = Outcomes(logits, peaks, verified, np.minimum(stands.cumprod(axis=1).sum(axis=1), verified))
    fitted = fit_logistic(outcomes)
    for found, true in ((fitted.slopes, 0.3), (fitted.peak_slopes, 0.8), (fitted.offsets, -0.4)):
        assert found[:2] == pytest.approx([true] * 2, abs=0.08)
    if most < BLOCK:
        assert (fitted.slopes[2:], fitted.peak_slopes[2:], fitted.offsets[2:]) == ((1.0,) * 2, (0.0,) * 2, (0.0,) * 2)
    assert conditional_loss(fitted, outcomes) < conditional_loss(fit_platt(outcomes), outcomes) - 0.03
    with pytest.raises(ValueError, match="reads peaks"):
        fitted.conditional(logits)


def test_an_isotonic_map_follows_what_no_line_can() -> None:
    numbers = np.random.default_rng(0)

    def bent(count: int) -> Outcomes:
        logits = numbers.uniform(-4, 4, (count, BLOCK))
        stands = numbers.random((count, BLOCK)) < np.where(logits < 0, 0.2, 0.9)
        accepted = stands.cumprod(axis=1).sum(axis=1)
        return without_peaks(logits, np.full(count, BLOCK), accepted)

    train, fresh = bent(20_000), bent(20_000)
    isotonic, platt = fit_isotonic(train), fit_platt(train)
    assert conditional_loss(isotonic, fresh) < conditional_loss(platt, fresh) - 0.01
    assert isotonic.conditional(np.array([[-3.0], [3.0]]))[:, 0] == pytest.approx([0.2, 0.9], abs=0.03)


@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([1.0, -1.0]))
def test_maps_never_fall_and_are_never_certain(seed: int, count: int, slope: float) -> None:
    outcomes = outcomes_of(count, slope, seed=seed)
    logits = np.linspace(-20, 20, 41)[:, None].repeat(BLOCK, axis=1)
    for calibration in (fit_platt(outcomes), fit_isotonic(outcomes)):
        c = calibration.conditional(logits)
        assert (np.diff(c, axis=0) >= -1e-12).all() and ((c > 0) & (c < 1)).all()


def test_confidence_that_means_the_opposite_is_not_believed() -> None:
    outcomes = outcomes_of(5000, -1.0, 1.0)
    fitted = fit_platt(outcomes)
    assert fitted.slopes == (0.0,) * BLOCK
    assert sigmoid(np.array(fitted.offsets[0])) == pytest.approx(outcomes.stood[:, 0].mean(), abs=0.01)


def test_of_drafts_that_nobody_saw_a_map_says_little() -> None:
    nothing = without_peaks(np.zeros((0, 2)), np.zeros(0, dtype=int), np.zeros(0, dtype=int))
    assert fit_platt(nothing) == Platt((1.0, 1.0), (0.0, 0.0))
    assert fit_isotonic(nothing).conditional(np.array([[5.0, -5.0]])).tolist() == [[0.5, 0.5]]
    with pytest.raises(UserError, match="none of 1 rounds verified all 2 drafts"):
        fit_temperatures(without_peaks(np.zeros((1, 2)), np.array([1]), np.array([0])))


@pytest.mark.parametrize(("verified", "accepted"), [([1], [2]), ([3], [0]), ([1], [-1]), ([1, 1], [0])])
def test_rounds_that_can_not_be_are_refused(verified: list[int], accepted: list[int]) -> None:
    with pytest.raises(ValueError, match=r"accept|logits"):
        without_peaks(np.zeros((1, 2)), np.array(verified), np.array(accepted))


def test_a_slot_is_observed_up_to_the_first_that_fell() -> None:
    outcomes = without_peaks(np.zeros((4, 3)), np.array([0, 2, 2, 3]), np.array([0, 0, 2, 1]))
    expected = [[False] * 3, [True, False, False], [True, True, False], [True, True, False]]
    assert outcomes.observed.tolist() == expected
    assert outcomes.stood.tolist() == [[False] * 3, [False] * 3, [True, True, False], [True, False, False]]


def test_what_a_map_stores_it_is_again() -> None:
    outcomes = outcomes_of(200, 0.5)
    for calibration in (fit(outcomes) for fit in (fit_temperatures, fit_platt, fit_isotonic, fit_logistic)):
        assert from_json(json.loads(json.dumps(as_json(calibration))), "here") == calibration
    scalars = {"kind": "platt", "slopes": 1.0, "offsets": 2.0}
    words = {"kind": "temperatures", "temperatures": ["1"]}
    empty = {"kind": "isotonic", "knots": [[]], "probabilities": [[]]}
    for wrong in (
        scalars,
        words,
        empty,
        {"kind": "platt", "slopes": [1.0]},
        {"kind": "guess"},
        {"kind": "platt", "slopes": [1], "offsets": []},
        {"kind": "logistic", "slopes": [[1]], "peak_slopes": [[1]], "offsets": [[1]]},
        {"kind": "temperatures", "temperatures": [0.0]},
        {"kind": "isotonic", "knots": [[0, 1]], "probabilities": [[0.5, 0.4]]},
        {"kind": "isotonic", "knots": [[0, 1]], "probabilities": [[-1, 0.4]]},
    ):
        with pytest.raises(UserError, match="here holds a .*map.*calibrate again"):
            from_json(wrong, "here")


def test_shorter_blocks_are_read_and_longer_ones_refused() -> None:
    assert untouched(3).conditional(np.zeros((5, 2))).tolist() == [[0.5, 0.5]] * 5
    with pytest.raises(ValueError, match="a map of 3 slots was given the logits of 4"):
        untouched(3).conditional(np.zeros(4))
