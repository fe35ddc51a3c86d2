"""Whether steps with drafts are dearer beside plain ones than the cost model says, and what planning them takes.

What decides is the ratio of the two, and a machine that others use as well is faster or slower for minutes. So only
steps of one kind that come soon after the other kind are compared: whatever else happens then is in both. The first
of a kind are not told (``SETTLED``): they find the caches full of what the other kind worked with.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median

SETTLED = {False: 6, True: 1}
"""By whether they draft: steps of a kind in a row until the next one takes what it takes among its own. Behind drafts
the target's weights have made room for others, and are back after some plain steps (docs/lab_log.md)."""
# Steps whose planning is remembered, comparisons that are, for how many of these the model that was measured counts,
# and how fast surprises of steps of one kind are followed (natural logarithms).
_PLANNED, _COMPARED, _TRUST, _FOLLOWING = 16, 15, 1, 0.3


class Pace:
    """Learns from steps ``after`` they are over; steps with drafts and plain ones are two kinds.

    A step that something else has held up says nothing, however long it was: of the last comparisons the middle third
    is averaged, and the median is taken of what planning took.
    """

    def __init__(self) -> None:
        self._planned: dict[bool, deque[float]] = {kind: deque(maxlen=_PLANNED) for kind in (False, True)}
        self._planning = {False: 0.0, True: 0.0}
        self._before: bool | None = None  # the kind of the step before
        self._lately = 0.0  # how surprising steps were since a step of the other kind
        self._ratios = deque([0.0] * _TRUST, maxlen=_COMPARED)
        self.dearer = 1.0
        """What steps with drafts take over what they are foretold to, where plain ones take just that."""

    def planning(self, drafting: bool) -> float:
        """Seconds that planning a step of this kind takes by itself."""
        return self._planning[drafting]

    def planned(self, drafting: bool, seconds: float, steps: int = 1) -> None:
        """So many went into planning one, or each of some steps."""
        self._planned[drafting].extend([seconds] * min(steps, _PLANNED))
        self._planning[drafting] = median(self._planned[drafting])

    def after(self, drafting: bool, over_foretold: float) -> None:
        """A step, its planning left out, took so many times what the model says of it."""
        surprise = math.log(over_foretold)
        if self._before == drafting:
            self._lately += _FOLLOWING * (surprise - self._lately)
            return
        if self._before is not None:
            self._ratios.append(surprise - self._lately if drafting else self._lately - surprise)
            outside = len(self._ratios) // 3
            self.dearer = math.exp(fmean(sorted(self._ratios)[outside : len(self._ratios) - outside]))
        self._before, self._lately = drafting, surprise

    def anew(self) -> None:
        """The model says something else from now on, so nothing before is compared with what comes."""
        self._before = None
