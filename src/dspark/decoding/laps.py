"""Where the time of steps goes, by the name of the work. Read by people and benchmarks, never by a decision."""

from __future__ import annotations

import time
from collections import defaultdict


class Laps:
    """A stop-watch: each lap goes to a name, and laps of a name add up (seconds)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def start(self) -> None:
        """Forget the time since the last lap."""
        self._last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now
