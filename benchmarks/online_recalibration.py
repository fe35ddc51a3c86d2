"""What confidence gains by rounds that are over, on recorded ones: nothing, each request's own, and those of all.

dspark calibrate --prompts TRAIN.jsonl --judge PROMPTS.jsonl --rounds rounds.npz --out calibration.json
python benchmarks/online_recalibration.py --rounds rounds.npz

A logistic map is fitted to the rounds that no judge has seen; the others come in the order in which they were decoded,
so many a step, whole blocks verified.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dspark.calibration.choose import scores_of, survival_through, tilted
from dspark.calibration.fits import fit_logistic
from dspark.calibration.outcomes import Numbers
from dspark.calibration.record import Recorded
from dspark.speculation.confidence import Logistic
from dspark.speculation.recalibration import LEVEL, Recalibration, Tilt

_A_STEP = 32


def learned(fitted: Logistic, recorded: Recorded) -> Numbers:
    """Survival ``[N, K]`` through a map that learns from all rounds before, tilted by those of the same request."""
    outcomes, map_now = recorded.outcomes, Recalibration.begin(fitted)
    survival, tilts = np.empty_like(outcomes.logits), dict[int, Tilt]()
    for first in range(0, len(recorded), _A_STEP):
        step = slice(first, first + _A_STEP)
        believed = map_now.map.conditional(outcomes.logits[step], outcomes.peaks[step])
        for i, c_K in enumerate(believed.tolist(), first):
            prompt, accepted = int(recorded.prompt[i]), int(outcomes.accepted[i])
            tilt = tilts.get(prompt, LEVEL)
            survival[i] = np.cumprod(tilt.tilted(c_K))
            tilts[prompt] = tilt.after(c_K, min(outcomes.block, accepted + 1), accepted)
        over = (outcomes.logits, outcomes.peaks, outcomes.verified, outcomes.accepted)
        map_now = map_now.after(*(each[step] for each in over))
    return survival


def main() -> None:
    """Print scores of prefixes, position by position."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=Path, required=True)
    recorded, judge = Recorded.load(parser.parse_args().rounds)
    fitted, judged = fit_logistic(recorded.at(~judge).outcomes), recorded.at(judge)
    ways = {
        "as fitted": survival_through(fitted, judged.outcomes),
        "each request's own": tilted(fitted, judged),
        "and those of all": learned(fitted, judged),
    }
    for name, survival in ways.items():
        scores = scores_of(survival, judged.outcomes)
        excess = " ".join(f"{100 * (each.ece - each.perfect_ece):5.2f}" for each in scores)
        brier = " ".join(f"{each.brier:.4f}" for each in scores)
        print(f"{name:20} excess ECE, per cent {excess}; Brier {brier}", flush=True)


if __name__ == "__main__":
    main()
