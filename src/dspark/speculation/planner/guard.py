"""Whether a step drafts at all: decided from the past, before anything is drafted.

Deciding it after a look at the present block would be App. A's search again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np

from dspark.speculation.rows import Counts


@dataclass(frozen=True)
class Resting:
    """What drafting has ``lost`` and neither gained back nor waited for, in plain steps; whether it ``rests`` until
    that is waited for, or is ``probing`` whether it pays again; how many steps in a row ``drafted``, and how many
    without drafts are still to be heard.
    """

    lost: float = 0.0
    rests: bool = False
    probing: bool = False
    drafted: int = 0
    hears: int = 0

    @property
    def woken(self) -> bool:
        """Whether this step is the first of a probe."""
        return self.probing and self.drafted == 1


DRAFTING = Resting()


@dataclass(frozen=True)
class Guard:
    """An account of what drafting loses, in plain steps. A step with drafts costs by how much the gain that the past
    promises is below ``margin`` (0.05: five per cent more tokens a second); what is promised above it pays back.

    Texts have easy and hard stretches, and what a few rounds promise is mostly chance: nobody rests before ``credit``
    is used up, and besides it a ``doubt`` that all requests share. Then nobody drafts until all is waited for, of which
    ``forgiven`` goes a step, or until so much is promised again; and a probe goes on until that is so or the credit is
    used up once more. A clear loss is seen in few steps, an unclear one costs little, and either is waited for by
    what it cost. So all that drafting is promised to lose, beside a margin less, is one credit (or one step, if that is
    more) and ``forgiven``, a share of the time.

    A probe is of one request in ``among``, others from one step to the next, where all together would lose more.
    Between steps with drafts comes a ``row`` of plain ones, since what those take must be known as well (the last of
    them: behind drafts a plain step takes longer, until the caches hold the target's weights again): every ``heard``
    steps in the beginning and where drafting does not pay, else the less often the longer it has gone on, until that
    costs no more than ``listening`` (a share of the time).
    """

    margin: float = 0.05
    credit: float = 0.5
    doubt: float = 2.5
    forgiven: float = 0.005
    among: int = 8
    listening: float = 0.005
    heard: int = 48
    row: int = 8

    def next_step(self, gain: float | None, resting: Resting, step: int = 0, requests: int = 1) -> tuple[bool, Resting]:
        """Whether the next step drafts, and what to remember; ``step``: how many there were.

        ``gain``: tokens a second of drafting steps over those of plain ones, less one, as the past promises it; None
        where there is no past: then a probe is due.
        """
        if gain is None:
            return True, Resting(probing=True, drafted=1)
        if resting.hears:
            return False, Resting(resting.lost, hears=resting.hears - 1)
        if resting.drafted >= max(self.heard, min(step / 2, self.row * gain / self.listening)):
            return False, Resting(resting.lost, hears=self.row - 1)
        lost, drafted = max(0.0, resting.lost + self.margin - gain), resting.drafted + 1
        if gain >= self.margin:
            return True, Resting(lost, drafted=drafted)
        if resting.rests:
            owed = max(0.0, resting.lost - self.forgiven)
            return (False, Resting(owed, rests=True)) if owed else (True, Resting(lost, probing=True, drafted=1))
        if lost > self.credit + self.doubt / requests:
            return False, Resting(lost, rests=True)  # of one step more: what nobody would do is waited for as well
        return True, Resting(lost, probing=resting.probing, drafted=drafted)

    def waits_for(self, gain: float, resting: Resting) -> int:
        """For how many steps at least it goes on resting, whatever happens but that another ``gain`` is promised."""
        if not resting.rests or not resting.lost or gain >= self.margin:
            return 0
        return max(0, int(resting.lost / self.forgiven) - 1) if self.forgiven else sys.maxsize

    def waited(self, resting: Resting, steps: int) -> Resting:
        """After so many steps of a rest, no more than it ``waits_for``."""
        return replace(resting, lost=resting.lost - steps * self.forgiven)

    def few(self, requests: int, step: int) -> Counts:
        """Which of so many requests draft in a probe, if not all do."""
        return np.arange(step % min(self.among, requests), requests, self.among)
