"""A confidence map that goes on learning while requests are served, from rounds that are over.

What a trimmed round shows is a censored hazard: slot k counts where it was verified and all before it stood. A map that
thinks too little of drafts would never see them verified, so a small share of rounds, chosen without a look at any
token, verifies further (``explores``).

The same serves a drafter without a confidence head: its input is then the log-odds of the largest p_d of each slot,
which never sees x_k either.

Legend: N rounds of a step, K slots of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dspark.speculation.confidence import Platt, clamped, sigmoid

Numbers = NDArray[np.float64]

# What a step leaves of what was known before it, how much the map that was fitted beforehand keeps counting (in rounds
# of the average kind), and the farthest that a slope or offset moves in one step.
_FADING, _TRUST, _FARTHEST = 0.998, 8.0, 0.5
# One round of so many verifies its whole block.
EXPLORING = 32


def explores(round: int, seed: int, every: int = EXPLORING) -> bool:
    """Whether a request's round verifies all of its drafts, whatever their confidence: decided by its number alone."""
    return (round + seed) % every == 0


@dataclass(frozen=True)
class Recalibration:
    """Slope and offset of each slot, ``weights [K, 2]``, and what is known of them, ``curvature [K, 2, 2]``.

    A value: ``after`` gives the next one, so a planner can hold on to the past that it may see.
    """

    weights: Numbers
    curvature: Numbers

    @classmethod
    def begin(cls, fitted: Platt) -> Recalibration:
        """From a map that was fitted beforehand (slopes 1, offsets 0: the head as it was trained)."""
        weights = np.stack((fitted.slopes, fitted.offsets), axis=1)
        return cls(weights, np.broadcast_to(_TRUST * np.eye(2) / 4, (fitted.block, 2, 2)).copy())

    @property
    def map(self) -> Platt:
        """What is believed now."""
        return Platt(tuple(self.weights[:, 0].tolist()), tuple(self.weights[:, 1].tolist()))

    def after(self, logits: Numbers, verified: NDArray[np.int64], accepted: NDArray[np.int64]) -> Recalibration:
        """With rounds that are over: logits ``[N, K]`` of their drafts, how many each verified and accepted ``[N]``.

        One step of Newton's method on the likelihood of what was observed, older rounds fading.
        """
        slots = np.arange(len(self.weights))
        logits = np.nan_to_num(logits)  # behind a shorter block there is none
        observed_NK = (slots < verified[:, None]) & (slots <= accepted[:, None])
        if not observed_NK.any():
            return self
        stood_NK = slots < accepted[:, None]
        inputs_NK2 = np.stack((clamped(logits), np.ones_like(logits)), axis=-1)
        p_NK = sigmoid((inputs_NK2 * self.weights).sum(axis=-1))
        uphill_K2 = np.einsum("nk,nki->ki", np.where(observed_NK, stood_NK - p_NK, 0.0), inputs_NK2)
        told_K22 = np.einsum("nk,nki,nkj->kij", observed_NK * p_NK * (1 - p_NK), inputs_NK2, inputs_NK2)
        seen_K11 = np.asarray(observed_NK.any(axis=0)).reshape(-1, 1, 1)
        least = _TRUST * np.eye(2) / 4
        kept = np.where(seen_K11, _FADING * self.curvature + (1 - _FADING) * least, self.curvature)
        curvature = kept + told_K22
        step_K2 = np.linalg.solve(curvature, uphill_K2[..., None])[..., 0]
        return replace(self, weights=self.weights + step_K2.clip(-_FARTHEST, _FARTHEST), curvature=curvature)
