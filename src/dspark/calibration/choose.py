"""Which map is best, judged on prompts that its fit never saw.

Legend: N rounds, K slots of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspark.calibration.fits import fit_isotonic, fit_logistic, fit_platt, fit_temperatures
from dspark.calibration.outcomes import Flags, Numbers, Outcomes
from dspark.calibration.record import Recorded
from dspark.foundation.errors import UserError
from dspark.speculation.confidence import ConfidenceMap, as_json, untouched
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.scores import Scores, auc, log_loss

Fit = Callable[[Outcomes], ConfidenceMap]
FITS: dict[str, Fit] = {
    "temperatures": fit_temperatures,
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "logistic": fit_logistic,
}


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
    return log_loss(outcomes.through(calibration)[seen], outcomes.stood[seen].astype(np.float64))


def scores_of(survival: Numbers, outcomes: Outcomes) -> list[Scores]:
    """Scores of the survival ``[N, K]`` of prefixes, position by position."""
    return [Scores.of(survival[:, k], outcomes.stood[:, k]) for k in range(outcomes.block)]


def survival_through(calibration: ConfidenceMap, outcomes: Outcomes) -> Numbers:
    """``a [N, K]``: the running product of the map's conditional probabilities."""
    survival: Numbers = outcomes.through(calibration).cumprod(axis=1)
    return survival


@dataclass(frozen=True)
class Split:
    """Recorded rounds, those that ``judge [N]`` while maps are fitted to the others, and which are whose by name."""

    recorded: Recorded
    judge: Flags
    named: Mapping[str, Flags]

    @classmethod
    def of(cls, recorded: Recorded, asked: int, others: Mapping[str, int]) -> Split:
        """The first ``asked`` prompts are fitted to and those of the ``others``, so many of each name, judge; without
        others every other prompt does. UserError where one of the two has no rounds.
        """
        prompt = recorded.prompt
        judge = prompt >= asked if others else prompt % 2 == 1
        for rows, what in ((~judge, "fitted to"), (judge, "that judge")):
            if not rows.any():
                raise UserError(f"no whole round belongs to the prompts {what}; give more prompts")
        firsts = zip(others.items(), accumulate(others.values(), initial=asked), strict=False)
        return cls(
            recorded, judge, {name: (prompt >= first) & (prompt < first + count) for (name, count), first in firsts}
        )

    @property
    def fitted(self) -> Recorded:
        """Rounds that maps are fitted to."""
        return self.recorded.at(~self.judge)

    @property
    def judging(self) -> Recorded:
        """Rounds of other prompts."""
        return self.recorded.at(self.judge)


def compare(split: Split, chosen: str) -> dict[str, Any]:
    """Scores, on the rounds that judge, of the confidence without a fit ("before"), of sequential temperatures
    ("after"), of the ``chosen`` kind and as plans read it ("tilted"), of all kinds, of a constant and of the oracle;
    the same by name.
    """
    fitted = split.fitted.outcomes
    maps = {kind: fit(fitted) for kind, fit in FITS.items()}
    in_turn = tilted(maps[chosen], split.recorded)

    def figures(rows: Flags) -> dict[str, Any]:
        some = split.recorded.at(rows)
        outcomes, count = some.outcomes, len(some)
        scored = {kind: judged(each, outcomes) for kind, each in maps.items()}
        return {
            "judged_rounds": count,
            "before": judged(untouched(outcomes.block), outcomes),
            "after": scored["temperatures"],
            "chosen": {"kind": chosen, **scored[chosen]},
            "tilted": columns(scores_of(in_turn[rows], outcomes)),
            "maps": scored,
            "constant": columns(scores_of(constant_survival(fitted, count), outcomes)),
            "oracle": columns(scores_of(some.oracle.cumprod(axis=1), outcomes)),
        }

    domains = {name: figures(rows) for name, rows in split.named.items() if rows.any()}
    return {"temperatures": as_json(maps["temperatures"])["temperatures"]} | figures(split.judge) | {"domains": domains}


def tilted(calibration: ConfidenceMap, recorded: Recorded) -> Numbers:
    """``a [N, K]`` as rounds are planned by it: the map's, tilted by what the rounds of the same prompt before it have
    shown (recorded rounds of a prompt are in their order).
    """
    believed, outcomes = recorded.outcomes.through(calibration), recorded.outcomes
    tilts: dict[int, Tilt] = {}
    survival = np.empty_like(believed)
    for i, prompt in enumerate(recorded.prompt.tolist()):
        tilt, accepted = tilts.get(prompt, LEVEL), int(outcomes.accepted[i])
        survival[i] = np.cumprod(tilt.tilted(believed[i].tolist()))
        tilts[prompt] = tilt.after(believed[i].tolist(), min(outcomes.block, accepted + 1), accepted)
    return survival


def judged(calibration: ConfidenceMap, outcomes: Outcomes) -> dict[str, Any]:
    """All scores of a map, position by position, and its loss of conditional probabilities."""
    scores = scores_of(survival_through(calibration, outcomes), outcomes)
    return {**columns(scores), "conditional_log_loss": conditional_loss(calibration, outcomes)}


def constant_survival(fitted: Outcomes, count: int) -> Numbers:
    """``[count, K]``: the rates of ``fitted`` for everybody, the baseline that knows nothing of a draft."""
    return np.tile(fitted.survival, (count, 1))


def confidence_of(recorded: Recorded, calibration: ConfidenceMap | None) -> dict[str, Any]:
    """How good confidence was, position by position, as rounds are planned by it: through ``calibration`` (None: as
    trained), tilted.

    The constant is the best in hindsight: the rate of these very rounds.
    """
    outcomes = recorded.outcomes
    kept = ("ece", "perfect_ece", "brier", "log_loss", "auc")

    def scored(survival: Numbers) -> dict[str, list[float]]:
        found = columns(scores_of(survival, outcomes))
        return {name: found[name] for name in kept}

    trained, rates = untouched(outcomes.block), outcomes.survival
    return {
        "rounds": len(outcomes),
        "map": None if calibration is None else calibration.kind,
        **scored(tilted(calibration or trained, recorded)),
        "oracle_auc": [
            auc(p_N, y_N) for p_N, y_N in zip(recorded.oracle.cumprod(axis=1).T, outcomes.stood.T, strict=True)
        ],
        "constant_brier": [rate * (1 - rate) for rate in rates],
        "constant_log_loss": [log_loss(np.full(1, rate), np.full(1, rate)) for rate in rates],
        "as_trained": scored(survival_through(trained, outcomes)),
    }


def columns(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """Position by position, by the name of the figure."""
    return {name: [vars(each)[name] for each in scores] for name in vars(scores[0])}
