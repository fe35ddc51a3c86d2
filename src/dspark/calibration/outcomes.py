"""What became of drafts whose confidence is known.

Legend: N rounds, K slots of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.foundation.errors import UserError
from dspark.speculation.confidence import ConfidenceMap

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """Rounds of one sampling regime: confidence logits and peaks ``[N, K]``, as ``speculation.confidence`` reads them,
    and how many drafts each verified and accepted ``[N]``.

    Slot k is observed where it was verified and all before it stood: under trimming a hazard, censored on the right.
    """

    logits: Numbers
    peaks: Numbers
    verified: NDArray[np.int64]
    accepted: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.logits.shape
        counts = self.verified.shape, self.accepted.shape
        if len(shape) != 2 or self.peaks.shape != shape or counts != (shape[:1],) * 2:
            raise ValueError(f"logits {shape}, peaks {self.peaks.shape}, verified and accepted {counts}")
        if ((self.accepted > self.verified) | (self.verified > shape[1]) | (self.accepted < 0)).any():
            raise ValueError("rounds accept at least none and at most what they verify, and verify at most a block")

    def __len__(self) -> int:
        return len(self.verified)

    @property
    def block(self) -> int:
        """K."""
        block: int = self.logits.shape[1]
        return block

    @property
    def observed(self) -> Flags:
        """``[N, K]``: where the fate of a draft, given all before it, is known."""
        slots = np.arange(self.block)
        known: Flags = (slots < self.verified[:, None]) & (slots <= self.accepted[:, None])
        return known

    @property
    def stood(self) -> Flags:
        """``[N, K]``: whether drafts 1..k were all accepted."""
        stood: Flags = np.arange(self.block) < self.accepted[:, None]
        return stood

    @property
    def survival(self) -> tuple[float, ...]:
        """``[K]``: the share of rounds whose drafts 1..k were all accepted; NaN of no rounds."""
        return tuple((self.stood.sum(axis=0) / len(self)).tolist()) if len(self) else (float("nan"),) * self.block

    def whole(self) -> Outcomes:
        """Rounds that verified every draft; UserError where there are none."""
        rows = self.verified == self.block
        if not rows.any():
            raise UserError(f"none of {len(self)} rounds verified all {self.block} drafts; calibrate on rounds that do")
        return self.at(rows)

    def at(self, rows: Flags) -> Outcomes:
        """Some of the rounds."""
        return Outcomes(self.logits[rows], self.peaks[rows], self.verified[rows], self.accepted[rows])

    def through(self, calibration: ConfidenceMap) -> Numbers:
        """``c [N, K]`` as a map reads them."""
        return calibration.conditional(self.logits, self.peaks)
