"""Which map is best, judged on prompts that its fit never saw.

Legend: N rounds, K slots of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.calibration.fits import fit_isotonic, fit_platt, fit_temperatures
from dspark.calibration.outcomes import Numbers, Outcomes
from dspark.calibration.record import Recorded
from dspark.foundation.errors import UserError
from dspark.speculation.confidence import ConfidenceMap
from dspark.speculation.scores import Scores, log_loss

Fit = Callable[[Outcomes], ConfidenceMap]
FITS: dict[str, Fit] = {"temperatures": fit_temperatures, "platt": fit_platt, "isotonic": fit_isotonic}


def best_kind(recorded: Recorded, folds: int = 4) -> str:
    """The kind of map with the least log-loss of conditional acceptance on prompts left out of the fit, in turn.

    UserError for rounds of a single prompt.
    """
    prompts, number_N = np.unique(recorded.prompt, return_inverse=True)
    if len(prompts) < 2:
        raise UserError(f"all whole rounds belong to {len(prompts)} of the prompts; give more of them")
    fold_N = number_N % folds
    present = np.unique(fold_N)
    losses = {
        kind: float(np.mean([_left_out(recorded.outcomes, fit, fold_N == fold) for fold in present]))
        for kind, fit in FITS.items()
    }
    return min(losses, key=lambda kind: losses[kind])


def _left_out(outcomes: Outcomes, fit: Fit, left_out_N: NDArray[np.bool_]) -> float:
    """Log-loss on some rounds after a fit to the others."""
    fitted = outcomes.at(~left_out_N)
    return conditional_loss(fit(fitted), outcomes.at(left_out_N))


def conditional_loss(calibration: ConfidenceMap, outcomes: Outcomes) -> float:
    """Mean log-loss of c_k where it was observed."""
    seen = outcomes.observed
    return log_loss(calibration.conditional(outcomes.logits)[seen], outcomes.stood[seen].astype(np.float64))


def scores_of(survival: Numbers, outcomes: Outcomes) -> list[Scores]:
    """Scores of the survival ``[N, K]`` of prefixes, position by position."""
    return [Scores.of(survival[:, k], outcomes.stood[:, k]) for k in range(outcomes.block)]


def survival_through(calibration: ConfidenceMap, outcomes: Outcomes) -> Numbers:
    """``a [N, K]``: the running product of the map's conditional probabilities."""
    survival: Numbers = calibration.conditional(outcomes.logits).cumprod(axis=1)
    return survival


def judged(calibration: ConfidenceMap, outcomes: Outcomes) -> dict[str, Any]:
    """All scores of a map, position by position, and its loss of conditional probabilities."""
    scores = scores_of(survival_through(calibration, outcomes), outcomes)
    return {**columns(scores), "conditional_log_loss": conditional_loss(calibration, outcomes)}


def constant_survival(fitted: Outcomes, count: int) -> Numbers:
    """``[count, K]``: the rates of ``fitted`` for everybody, the baseline that knows nothing of a draft."""
    return np.tile(fitted.stood.mean(axis=0), (count, 1))


def columns(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """Position by position, by the name of the figure."""
    return {name: [vars(each)[name] for each in scores] for name in vars(scores[0])}
