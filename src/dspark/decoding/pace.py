"""Whether steps with drafts are dearer beside plain ones than the cost model says, and what planning them takes.

What decides is the ratio of the two, and a machine that others use as well is faster or slower for minutes. So only
steps of one kind that come right after the other kind are compared: whatever else happens then is in both.
"""

from __future__ import annotations

import math

# How fast surprises and the ratio follow at least, how many comparisons the model that was measured counts for, the
# largest surprise that counts and the least of which two alike in a row are no chance (natural logarithms).
_FOLLOWING, _LEARNING, _TRUST, _SURPRISE, _CHANCE = 0.3, 0.1, 2, 0.5, 0.1


class Pace:
    """Learns from every step ``after`` it; steps with drafts and plain ones are two kinds."""

    def __init__(self) -> None:
        self._planning: dict[bool, float] = {}
        self._before: bool | None = None  # the kind of the step before
        self._lately = 0.0  # how surprising steps were since a step of the other kind
        self._ratio, self._compared, self._wrong = 0.0, 0, 0.0

    @property
    def dearer(self) -> float:
        """What steps with drafts take over what they are foretold to, where plain ones take just that."""
        return math.exp(self._ratio)

    def planning(self, drafting: bool) -> float:
        """Seconds that planning a step of this kind takes by itself."""
        return self._planning.get(drafting, 0.0)

    def planned(self, drafting: bool, seconds: float) -> None:
        """So many went into planning one."""
        known = self._planning.get(drafting, seconds)
        self._planning[drafting] = known + _LEARNING * (seconds - known)

    def after(self, drafting: bool, over_foretold: float) -> None:
        """A step, its planning left out, took so many times what the model says of it."""
        surprise = math.log(over_foretold)
        if self._before == drafting:
            self._lately += _FOLLOWING * (surprise - self._lately)
            return
        if self._before is not None:
            here = surprise - self._lately if drafting else self._lately - surprise
            wrong = max(-_SURPRISE, min(_SURPRISE, here - self._ratio))
            changed = wrong * self._wrong > 0 and min(abs(wrong), abs(self._wrong)) > _CHANCE
            self._compared, self._wrong = 1 if changed else self._compared + 1, wrong
            self._ratio += max(_LEARNING, 1 / (_TRUST + self._compared)) * wrong
        self._before, self._lately = drafting, surprise
