"""Whether a step drafts at all: decided from the past, before anything is drafted.

Deciding it after a look at the present block would be App. A's search again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dspark.speculation.planner.plan import Counts


@dataclass(frozen=True)
class Resting:
    """What drafting has ``lost`` and neither gained back nor waited for, in plain steps; whether it ``rests`` until
    that is waited for; whether it is ``probing``, with few requests, if it pays again; how many steps in a row drafted.
    """

    lost: float = 0.0
    rests: bool = False
    probing: bool = False
    drafted: int = 0

    @property
    def woken(self) -> bool:
        """Whether this step is the first that drafts after a rest."""
        return self.probing and self.drafted == 1


DRAFTING = Resting()


@dataclass(frozen=True)
class Guard:
    """An account of what drafting loses, in plain steps: a step with drafts loses what the past promises it to gain less
    than ``margin`` (0.05: five per cent more tokens a second), and what it promises above that pays back.

    Texts have easy and hard stretches, and what a few rounds promise is uncertain, the more the fewer requests there
    are. So nobody rests before ``credit`` is used up (and ``doubt``, shared among the requests). Then nobody drafts until the loss has been waited for, ``forgiven`` a step; a probe comes
    then, a few requests (one of ``among``) that draft until it pays, or until the credit is used up again. So a wait is as long as
    its loss was large, and drafting loses no more than the credit and ``forgiven`` (a share of all time) of what the past promised of plain
    steps.

    While it pays, a plain step comes in between, since what those take must be known as well: in the beginning every
    ``heard`` steps, later the less often the longer it has gone on, until it costs no more than ``listening`` (a share
    of the time).
    """

    margin: float = 0.05
    credit: float = 0.5
    doubt: float = 2.5
    forgiven: float = 0.005
    among: int = 8
    listening: float = 0.005
    heard: int = 8

    def next_step(self, gain: float | None, resting: Resting, step: int = 0, requests: int = 1) -> tuple[bool, Resting]:
        """Whether the next step drafts, and what to remember; ``step``: how many there were.

        ``gain``: tokens a second of drafting steps over those of plain ones, less one, as the past promises it; None
        where there is no past: then a probe is due.
        """
        if gain is None:
            return True, Resting(probing=True, drafted=1)
        lost, drafted = max(0.0, resting.lost + self.margin - gain), resting.drafted + 1
        if gain >= self.margin:
            if resting.drafted >= max(self.heard, min(step / self.heard, gain / self.listening)):
                return False, Resting(lost)
            return True, Resting(lost, drafted=drafted)
        if resting.rests:
            owed = max(0.0, resting.lost - self.forgiven)
            if owed:
                return False, Resting(owed, rests=True)
            return True, Resting(lost, probing=True, drafted=1)
        if lost > self.credit + self.doubt / requests:
            return False, Resting(resting.lost, rests=True)
        return True, Resting(lost, False, resting.probing, drafted)

    def charged(self, before: Resting, gain: float, resting: Resting) -> Resting:
        return replace(resting, lost=max(0.0, before.lost + self.margin - gain))

    def asked(self, requests: int, step: int, resting: Resting) -> Counts:
        """Which of so many requests draft in a step that does: all, or in a probe others from one to the next."""
        if not resting.probing:
            return np.arange(requests)
        return np.arange(step % min(self.among, requests), requests, self.among)
