"""Whether copies are looked for in steps in which nobody drafts: they are free to find, and not to plan and verify."""

from __future__ import annotations

from collections import deque
from statistics import median

# Steps without copies before the first ones and, while they pay, between: what a step takes by itself must be known.
_BEFORE, _BETWEEN = 8, 2
# Steps after which copying is judged, and how many go by without it where it does not pay: twice as many each time, up
# to the last.
_TRIED, _SOONEST, _LATEST = 16, 32, 256


class Copying:
    """Judges by what copies gained in the last steps, and by what these took beside steps without: the past alone, so
    it bends no law. A cost model would do for what verifying them takes, but a few rows more than a tile has are dearer
    than it says, and planning is not in it.
    """

    def __init__(self) -> None:
        self._gained, self._steps = 0.0, 0
        self._left, self._patience = _BEFORE, _SOONEST
        self._took: dict[bool, deque[float]] = {wanted: deque(maxlen=_TRIED) for wanted in (False, True)}

    @property
    def wanted(self) -> bool:
        """Whether the next step without drafts looks for copies."""
        return not self._left

    def after(self, gained: float, took: float) -> None:
        """Such a step is over: what its accepted copies are worth and what it took with all its planning, both in steps
        of so many requests as the cost model foretells them without copies.
        """
        wanted = self.wanted
        self._took[wanted].append(took)
        if not wanted:
            self._left -= 1
            return
        self._gained += gained
        self._steps += 1
        if self._steps == _TRIED:
            if self._gained / _TRIED < median(self._took[True]) - median(self._took[False]):
                self._left, self._patience = self._patience, min(2 * self._patience, _LATEST)
            else:
                self._left, self._patience = _BETWEEN, _SOONEST
            self._gained, self._steps = 0.0, 0
