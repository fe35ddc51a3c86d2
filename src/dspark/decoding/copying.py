"""Whether copies are looked for in steps in which nobody drafts: they are free to find, and not to plan and verify."""

from __future__ import annotations

from dspark.decoding.pace import Pace

# Steps with copies in a row before one without (what that takes must be known); in plain steps, what copies may lose
# (more the fewer requests there are, since what a few gain is chance), and what is forgiven a step without.
_HEARD, _CREDIT, _DOUBT, _FORGIVEN = 8, 0.5, 2.5, 0.005


class Copying:
    """An account as the guard of drafts keeps it (``planner.guard``), of what copies gained and what steps with them
    took: what the cost model says, and what that leaves out (planning, a few rows more than a tile has), which is
    learned beside neighbours without copies. The past alone, so it bends no law.

    While the account is overdrawn nobody looks for copies until all is forgiven, so they lose no more than a credit and
    half a per cent of the time.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._lost, self._waits, self._row = 0.0, False, 0

    @property
    def wanted(self) -> bool:
        """Whether the next step without drafts looks for copies."""
        return not self._waits and self._row < _HEARD

    @property
    def waits_for(self) -> int:
        """Steps without copies for which, at least, nobody will look for any."""
        return max(0, int(self._lost / _FORGIVEN) - 1) if self._waits else 0

    def after(self, copies: bool, gained: float, took: float, foretold: float, requests: int) -> None:
        """Such a step is over, with ``copies`` or without: what those accepted are worth, in steps of so many requests;
        what it took with all its planning, and what the cost model foretold of it, over what that foretells without
        copies.
        """
        self._pace.after(copies, took / foretold)
        if copies:
            self._lost = max(0.0, self._lost + foretold * self._pace.dearer - 1 - gained)
            self._waits = self._lost > _CREDIT + _DOUBT / requests
        elif self._waits:
            self._lost -= _FORGIVEN
            self._waits = self._lost > 0
        self._row = self._row + 1 if copies else 0

    def anew(self) -> None:
        """The cost model says something else from now on (``Pace.anew``)."""
        self._pace.anew()
