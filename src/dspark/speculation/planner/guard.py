"""Whether a step drafts at all: decided from the past, before anything is drafted.

Deciding it after a look at the present block would be App. A's search again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dspark.speculation.planner.plan import Counts


@dataclass(frozen=True)
class Resting:
    """How many steps went by without a draft, and how many may before one is made to see whether it pays again; what
    drafting has ``lost`` and not paid back, as a share of its own steps; how many steps in a row ``drafted``.
    """

    steps: int = 0
    patience: int = 0
    lost: float = 0.0
    drafted: int = 0

    @property
    def probing(self) -> bool:
        """Whether this step drafts to see whether it pays again."""
        return self.patience > 0 and self.steps == 0


DRAFTING = Resting()


@dataclass(frozen=True)
class Guard:
    """No draft where the gain that the past promises is below ``margin`` (0.05: five per cent more tokens a second),
    and has been for so long that a ``credit`` of drafting steps is used up: texts have easy and hard stretches. What
    they gain pays it back, and of what is owed so much is ``forgiven`` a step of rest.

    A probe comes after ``soonest`` steps without a draft, then after twice as many each time, up to ``latest``, and
    only one of ``among`` requests drafts in it: what finding out costs is bounded, and drafting comes back when texts
    or load have changed. While it pays, a plain step comes in between, since what those take must be known as well: in
    the beginning every ``heard`` steps, later the less often the longer it has gone on, until it costs no more than
    ``listening`` (a share of the time).
    """

    margin: float = 0.05
    soonest: int = 8
    latest: int = 128
    credit: float = 0.5
    forgiven: float = 0.002
    among: int = 8
    listening: float = 0.005
    heard: int = 8

    def next_step(self, gain: float | None, resting: Resting, step: int = 0) -> tuple[bool, Resting]:
        """Whether the next step drafts, and what to remember; ``step``: how many there were.

        ``gain``: tokens a second of drafting steps over those of plain ones, less one, as the past promises it; None
        where there is no past: then a probe is due.
        """
        if gain is None:
            return True, Resting(0, self.soonest)
        lost = max(0.0, resting.lost + self.margin - gain)
        if gain >= self.margin or (not resting.patience and lost <= self.credit):
            if resting.drafted >= max(self.heard, min(step / self.heard, gain / self.listening)):
                return False, Resting(lost=resting.lost)
            return True, Resting(lost=min(lost, self.credit), drafted=resting.drafted + 1)
        patience, owed = resting.patience or self.soonest, max(0.0, resting.lost - self.forgiven)
        if resting.steps < patience:
            return False, Resting(resting.steps + 1, patience, owed)
        return True, Resting(0, min(2 * patience, self.latest), owed)

    def asked(self, requests: int, step: int, resting: Resting) -> Counts:
        """Which of so many requests draft in a step that does: all, or in a probe others from one to the next."""
        if not resting.probing:
            return np.arange(requests)
        return np.arange(step % min(self.among, requests), requests, self.among)
