"""How good predicted probabilities are: calibration error, Brier score, log-loss, AUC, always side by side.

The calibration error alone misleads: a constant can win it. And it is never zero on finite data, so it is read beside
the one that perfectly calibrated predictions of the same sharpness would show (``perfect_ece``).

Legend: N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
BINS = 15
_SIMULATED = 200
_LEAST = 1e-7  # no prediction is taken to be surer than this


@dataclass(frozen=True)
class Scores:
    """Figures of predictions of events that happened or not; NaN where there are none (AUC: where all are alike)."""

    count: int
    rate: float
    ece: float
    perfect_ece: float
    brier: float
    log_loss: float
    auc: float

    @classmethod
    def of(cls, p_N: Numbers, happened_N: NDArray[np.bool_]) -> Scores:
        """All of them."""
        y_N = happened_N.astype(np.float64)
        if not len(p_N):
            return cls(0, *[float("nan")] * 6)
        return cls(
            count=len(p_N),
            rate=float(y_N.mean()),
            ece=ece(p_N, y_N),
            perfect_ece=perfect_ece(p_N),
            brier=float(((p_N - y_N) ** 2).mean()),
            log_loss=log_loss(p_N, y_N),
            auc=auc(p_N, happened_N),
        )


def bins_of(p_N: Numbers, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each prediction ``[N]``: of equal mass, equal predictions never apart (so a constant has one bin)."""
    before_N = np.searchsorted(np.sort(p_N), p_N, side="left")
    return before_N * bins // max(1, len(p_N))


def ece(p_N: Numbers, y_N: Numbers, bins: int = BINS) -> float:
    """Expected calibration error: how far mean prediction and rate are apart, over bins of equal mass."""
    apart = np.bincount(bins_of(p_N, bins), weights=p_N - y_N, minlength=bins)
    return float(np.abs(apart).sum() / len(p_N))


def perfect_ece(p_N: Numbers, bins: int = BINS) -> float:
    """The calibration error to expect where every prediction is the true probability: simulated, the same each time."""
    bin_N, generator = bins_of(p_N, bins), np.random.default_rng(0)
    apart = [
        np.abs(np.bincount(bin_N, weights=p_N - (generator.random(len(p_N)) < p_N), minlength=bins)).sum()
        for _ in range(_SIMULATED)
    ]
    return float(np.mean(apart) / len(p_N))


def log_loss(p_N: Numbers, y_N: Numbers) -> float:
    """Mean of minus the logarithm of what was given to what happened."""
    p_N = p_N.clip(_LEAST, 1 - _LEAST)
    return float(-(y_N * np.log(p_N) + (1 - y_N) * np.log1p(-p_N)).mean())


def auc(p_N: Numbers, happened_N: NDArray[np.bool_]) -> float:
    """The chance that of two, one that happened and one that did not, the former was the more expected; ties half."""
    positive = int(happened_N.sum())
    negative = len(happened_N) - positive
    if not positive or not negative or np.isnan(p_N).any():
        return float("nan")
    ordered = np.sort(p_N)
    ranks_N = (np.searchsorted(ordered, p_N, "left") + np.searchsorted(ordered, p_N, "right") + 1) / 2
    return float((ranks_N[happened_N].sum() - positive * (positive + 1) / 2) / (positive * negative))
