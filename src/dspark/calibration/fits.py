"""Confidence maps fitted to outcomes: sequential temperature scaling to the letter, Platt's and isotonic ones, and a
logistic one that reads how sure the drafter is of itself as well.

The last three fit each slot's conditional probability by likelihood, so rounds that verified only a part count for what
they show. Legend: N rounds, K slots, P pools.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dspark.calibration.outcomes import Numbers, Outcomes
from dspark.speculation.confidence import Isotonic, Logistic, Platt, Temperatures, clamped, sigmoid
from dspark.speculation.scores import ece

_TEMPERATURES = np.geomspace(0.1, 10.0, 161)
# Added to the curvature of a fit: what four drafts that stand half of the time would, a quarter each. With few data a
# map stays near the head's own logits.
_PRIOR = 4.0 / 4
_STEPS = 50


def fit_temperatures(outcomes: Outcomes) -> Temperatures:
    """STS (section 4): for k = 1..K in order the T_k of a grid with the least calibration error of the product of
    c_1..c_k against "prefix k was accepted", those before it fixed.
    """
    whole = outcomes.whole()
    before, chosen = np.ones(len(whole)), []
    for logit_N, stood_N in zip(clamped(whole.logits).T, whole.stood.T, strict=True):
        errors = [ece(before * sigmoid(logit_N / t), stood_N.astype(np.float64)) for t in _TEMPERATURES]
        chosen.append(float(_TEMPERATURES[int(np.argmin(errors))]))
        before = before * sigmoid(logit_N / chosen[-1])
    return Temperatures(tuple(chosen))


def fit_platt(outcomes: Outcomes) -> Platt:
    """Slope and offset of each slot with the greatest likelihood, a little towards 1 and 0.

    No slope falls, or the least confident drafts would go first: such a slot gets its rate.
    """
    fitted = []
    for k in range(outcomes.block):
        logit_N, _, happened_N = _slot(outcomes, k)
        slope, offset = _logistic(logit_N[:, None], happened_N)
        fitted.append((slope, offset) if slope >= 0 else (0.0, _logistic(0 * logit_N[:, None], happened_N)[1]))
    return Platt(tuple(slope for slope, _ in fitted), tuple(offset for _, offset in fitted))


def fit_logistic(outcomes: Outcomes) -> Logistic:
    """Of each slot slopes of logit and peak, and an offset, with the greatest likelihood, a little towards 1, 0, 0."""
    fitted = []
    for k in range(outcomes.block):
        logit_N, peak_N, happened_N = _slot(outcomes, k)
        fitted.append(_logistic(np.stack((logit_N, peak_N), axis=1), happened_N))
    slopes, peak_slopes, offsets = zip(*fitted, strict=True)
    return Logistic(slopes, peak_slopes, offsets)


def fit_isotonic(outcomes: Outcomes) -> Isotonic:
    """The likeliest map of each slot that only rises, pools of equal rate joined by lines."""
    knots, probabilities = [], []
    for k in range(outcomes.block):
        logit_N, _, happened_N = _slot(outcomes, k)
        at_P, rate_P = _pools(logit_N, happened_N)
        knots.append(tuple(at_P.tolist()))
        probabilities.append(tuple(rate_P.tolist()))
    return Isotonic(tuple(knots), tuple(probabilities))


def _slot(outcomes: Outcomes, k: int) -> tuple[Numbers, Numbers, Numbers]:
    """Logits, peaks and fates (0 or 1) of the observed drafts at slot k."""
    rows = outcomes.observed[:, k]
    logits, peaks = (clamped(each[rows, k]) for each in (outcomes.logits, outcomes.peaks))
    return logits, peaks, outcomes.stood[rows, k].astype(np.float64)


def _logistic(known_NF: Numbers, happened_N: Numbers) -> tuple[float, ...]:
    """Slopes and offset, by Newton's method; the prior pulls towards a first slope of 1 and nothing else."""
    inputs_N = np.concatenate((known_NF, np.ones((len(known_NF), 1))), axis=1)
    before = np.eye(inputs_N.shape[1])[0]
    weights = before.copy()
    for _ in range(_STEPS):
        p_N = sigmoid(inputs_N @ weights)
        downhill = inputs_N.T @ (p_N - happened_N) + _PRIOR * (weights - before)
        curvature = (inputs_N * (p_N * (1 - p_N))[:, None]).T @ inputs_N + _PRIOR * np.eye(len(weights))
        step = np.linalg.solve(curvature, downhill)
        weights = weights - step * min(1.0, 2.0 / max(1e-9, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    return tuple(weights.tolist())


def _pools(logit_N: Numbers, happened_N: Numbers) -> tuple[Numbers, NDArray[np.float64]]:
    """Mean logits ``[P]`` and rates ``[P]`` of pools of adjacent violators, lowest first; rates are never 0 or 1."""
    if not len(logit_N):
        return np.zeros(1), np.full(1, 0.5)
    values, where = np.unique(logit_N, return_inverse=True)
    pools: list[list[float]] = []  # observations, those that happened, sum of logits
    counts, sums = np.bincount(where), np.bincount(where, weights=happened_N)
    for value, count, happened in zip(values.tolist(), counts.tolist(), sums.tolist(), strict=True):
        pools.append([count, happened, count * value])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    count_P, happened_P, logits_P = np.array(pools).T
    rate = float(happened_N.mean()) * 0.998 + 0.001
    rates: Numbers = np.maximum.accumulate((happened_P + rate) / (count_P + 1))
    return logits_P / count_P, rates
