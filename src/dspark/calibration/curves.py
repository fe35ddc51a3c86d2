"""Curves behind the plots of a calibration: reliability, and what a fixed threshold would verify (the paper's Fig. 5).

Legend: N rounds, K slots of a block, B bins.
"""

from __future__ import annotations

import numpy as np

from dspark.calibration.outcomes import Numbers, Outcomes
from dspark.speculation.confidence import ConfidenceMap
from dspark.speculation.scores import bins_of

_THRESHOLDS = np.linspace(0.0, 0.95, 20)


def reliability(survival: Numbers, outcomes: Outcomes) -> list[dict[str, list[float]]]:
    """For each position the mean of ``survival [N, K]`` ("predicted") and the share of prefixes that stood ("rate") of
    each of the bins of equal mass that are not empty.
    """
    return [_binned(survival[:, k], outcomes.stood[:, k].astype(np.float64)) for k in range(outcomes.block)]


def _binned(p_N: Numbers, y_N: Numbers) -> dict[str, list[float]]:
    bin_N = bins_of(p_N)
    count = np.bincount(bin_N)
    there = count > 0
    predicted, rate = (np.bincount(bin_N, weights=each)[there] / count[there] for each in (p_N, y_N))
    return {"predicted": predicted.tolist(), "rate": rate.tolist()}


def threshold_sweep(calibration: ConfidenceMap, outcomes: Outcomes) -> dict[str, list[float]]:
    """What whole rounds would have been had each verified its drafts up to the first whose confidence is below a
    threshold: the share of verified drafts that are accepted, drafts verified a round, and tau.
    """
    confidence = outcomes.through(calibration)
    found: dict[str, list[float]] = {"threshold": [], "acceptance": [], "verified": [], "tau": []}
    for threshold in _THRESHOLDS.tolist():
        verified_N = (confidence >= threshold).cumprod(axis=1).sum(axis=1)
        accepted_N = np.minimum(verified_N, outcomes.accepted)
        acceptance = accepted_N.sum() / verified_N.sum() if verified_N.any() else np.nan
        row = (threshold, float(acceptance), float(verified_N.mean()), float(1 + accepted_N.mean()))
        for name, value in zip(found, row, strict=True):
            found[name].append(value)
    return found
