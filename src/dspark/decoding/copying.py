"""Whether copies are looked for in steps in which nobody drafts: they are free to find, and not to plan and verify."""

from __future__ import annotations

# Steps after which copying is judged, and how many go by without it then: twice as many each time, up to the last.
_TRIED, _SOONEST, _LATEST = 16, 32, 256
_LEARNING = 0.1


class Copying:
    """Judges by what copies gained in the last steps and what they took: the past alone, so it bends no law."""

    def __init__(self) -> None:
        self._gained, self._steps = 0.0, 0
        self._left, self._patience = 0, _SOONEST
        self._planning: dict[bool, float] = {}

    @property
    def wanted(self) -> bool:
        """Whether the next step without drafts looks for copies."""
        return not self._left

    def after(self, gained: float, took: float, planning: float) -> None:
        """Such a step is over: seconds that its accepted copies are worth, those that verifying them added, and those
        that planning the step took.
        """
        wanted = self.wanted
        known = self._planning.get(wanted, planning)
        self._planning[wanted] = known + _LEARNING * (planning - known)
        if not wanted:
            self._left -= 1
            return
        self._gained += gained - took - (self._planning[True] - self._planning.get(False, 0.0))
        self._steps += 1
        if self._steps == _TRIED:
            if self._gained < 0:
                self._left, self._patience = self._patience, min(2 * self._patience, _LATEST)
            else:
                self._patience = _SOONEST
            self._gained, self._steps = 0.0, 0
