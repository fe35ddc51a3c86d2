"""A confidence map that goes on learning while requests are served, from rounds that are over.

What a trimmed round shows is a censored hazard: slot k counts where it was verified and all before it stood. A map that
thinks too little of drafts would never see them verified, so a small share of rounds, chosen without a look at any
token, verifies further (``explores``).

The same serves a drafter without a confidence head, whose confidence is the log-odds of the largest p_d of each slot.

Legend: N rounds of a step, R requests, K slots of a block; the three inputs of a slot are its confidence logit, its
peak and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dspark.speculation.confidence import Logistic, clamped, sigmoid
from dspark.speculation.rows import Counts, Numbers, side_by_side

# What a step leaves of what was known before it, how much the map that was fitted beforehand keeps counting (in rounds
# of the average kind), and the farthest that a slope or offset moves in one step.
_FADING, _TRUST, _FARTHEST = 0.998, 8.0, 0.5
_LEAST = _TRUST * np.eye(3) / 4
# Variance of a request's tilt before anything is known of it, and what a round leaves of what was known before it.
_SPREAD, _KEPT = 0.2, 0.97
_SUREST = 1e-7  # no draft is believed to be surer
# One round of so many verifies its whole block.
EXPLORING = 32


def explores(round: int, seed: int, every: int = EXPLORING) -> bool:
    """Whether a request's round verifies all of its drafts, whatever their confidence: decided by its number alone."""
    return (round + seed) % every == 0


class Outcome(NamedTuple):
    """Confidence ``logits`` and ``peaks`` of a round's drafts; how many are ``observed``, and how many stood."""

    logits: Sequence[float]
    peaks: Sequence[float]
    observed: int
    accepted: int


@dataclass(frozen=True)
class Recalibration:
    """Slopes and offset of each slot, ``weights [K, 3]``, and what is known of them, ``curvature [K, 3, 3]``.

    A value: ``after`` gives the next one, so a planner can hold on to the past that it may see.
    """

    weights: Numbers
    curvature: Numbers

    @classmethod
    def begin(cls, fitted: Logistic) -> Recalibration:
        """From a map that was fitted beforehand (slopes 1, 0 and offsets 0: the head as it was trained)."""
        weights = np.stack((fitted.slopes, fitted.peak_slopes, fitted.offsets), axis=1)
        return cls(weights, np.broadcast_to(_LEAST, (fitted.block, 3, 3)).copy())

    @property
    def block(self) -> int:
        """K."""
        return len(self.weights)

    @cached_property
    def map(self) -> Logistic:
        """What is believed now."""
        slopes, peak_slopes, offsets = map(tuple, self.weights.T.tolist())
        return Logistic(slopes, peak_slopes, offsets)

    def with_outcomes(self, outcomes: Sequence[Outcome]) -> Recalibration:
        """``after`` rounds of drafts of any lengths up to K."""
        logits_NK, _ = side_by_side([each.logits for each in outcomes], self.block)
        peaks_NK, _ = side_by_side([each.peaks for each in outcomes], self.block)
        observed, accepted = np.array([(each.observed, each.accepted) for each in outcomes], dtype=np.int64).T
        return self.after(logits_NK, peaks_NK, observed, accepted)

    def after(self, logits: Numbers, peaks: Numbers, verified: Counts, accepted: Counts) -> Recalibration:
        """With rounds that are over: confidence logits and peaks ``[N, K]`` of their drafts, and how many each verified
        and accepted ``[N]``.

        One step of Newton's method on the likelihood of what was observed, older rounds fading.
        """
        slots = np.arange(len(self.weights))
        observed_NK = (slots < verified[:, None]) & (slots <= accepted[:, None])
        if not observed_NK.any():
            return self
        observed_KN, stood_KN = observed_NK.T, (slots < accepted[:, None]).T
        known = [clamped(np.nan_to_num(each.T)) for each in (logits, peaks)]  # behind a shorter block there is none
        inputs_KN3 = np.stack((*known, np.ones_like(known[0])), axis=-1)
        p_KN = sigmoid((inputs_KN3 @ self.weights[..., None])[..., 0])
        uphill_K3 = (np.where(observed_KN, stood_KN - p_KN, 0.0)[:, None] @ inputs_KN3)[:, 0]
        told_K33 = (inputs_KN3 * (observed_KN * p_KN * (1 - p_KN))[..., None]).swapaxes(1, 2) @ inputs_KN3
        seen_K11 = np.asarray(observed_NK.any(axis=0)).reshape(-1, 1, 1)
        kept = np.where(seen_K11, _FADING * self.curvature + (1 - _FADING) * _LEAST, self.curvature)
        curvature = kept + told_K33
        step_K3 = np.linalg.solve(curvature, uphill_K3[..., None])[..., 0]
        return replace(self, weights=self.weights + step_K3.clip(-_FARTHEST, _FARTHEST), curvature=curvature)


class Tilt(NamedTuple):
    """How much better or worse a request's drafts fare than they are believed to, in log-odds: learned from its own
    rounds that are over, so that a text of another kind than those of the fit is soon seen for what it is.

    A value, begun anew for each request: what is learned of it is nobody else's, and a seed stays a text.
    ``precision``: what is known, one over its variance.
    """

    log_odds: float = 0.0
    precision: float = 1 / _SPREAD

    def tilted(self, believed: Sequence[float]) -> list[float]:
        """``c [K]`` as they were believed, each moved by so many log-odds."""
        odds = math.exp(self.log_odds)
        kept = (min(max(c, _SUREST), 1 - _SUREST) for c in believed)
        return [c * odds / (c * odds + (1 - c)) for c in kept]  # never above 1, whatever is rounded

    def after(self, believed: Sequence[float], observed: int, accepted: int) -> Tilt:
        """With a round that is over: the fate of its first ``observed`` drafts is known, ``accepted`` of them stood.

        One step of Newton's method with a normal prior, older rounds fading.
        """
        if not observed:
            return self
        seen = self.tilted(believed[:observed])
        precision = _KEPT * self.precision + (1 - _KEPT) / _SPREAD + sum(c * (1 - c) for c in seen)
        return Tilt(self.log_odds + (accepted - sum(seen)) / precision, precision)


LEVEL = Tilt()
"""Of a request that nothing is known of."""


def all_tilted(tilts: Sequence[Tilt], believed_RK: Numbers) -> Numbers:
    """``Tilt.tilted`` of many requests at once, ``[R, K]``."""
    odds_R1 = np.exp([tilt.log_odds for tilt in tilts])[:, None]
    kept = believed_RK.clip(_SUREST, 1 - _SUREST)
    gained = kept * odds_R1
    tilted: Numbers = gained / (gained + (1 - kept))
    return tilted


def all_after(
    tilts: Sequence[Tilt], believed: Sequence[Sequence[float]], observed: Sequence[int], accepted: Sequence[int]
) -> list[Tilt]:
    """``Tilt.after`` of many requests at once: what each was ``believed [R][k]``, what is known of it ``[R]``."""
    believed_RK, lengths_R = side_by_side(believed)
    log_odds_R, precision_R = np.array(tilts).reshape(-1, 2).T  # of none, too
    seen_RK = np.arange(believed_RK.shape[1]) < np.minimum(np.array(observed, dtype=np.int64), lengths_R)[:, None]
    c_RK = np.where(seen_RK, all_tilted(tilts, believed_RK), 0.0)
    told_R = _KEPT * precision_R + (1 - _KEPT) / _SPREAD + (c_RK * (1 - c_RK)).sum(axis=1)
    moved_R = log_odds_R + (np.array(accepted) - c_RK.sum(axis=1)) / told_R
    moved = zip(tilts, observed, moved_R.tolist(), told_R.tolist(), strict=True)
    return [Tilt(log_odds, told) if seen else tilt for tilt, seen, log_odds, told in moved]
