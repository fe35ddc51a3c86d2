"""Where the time of steps goes, by the name of the work. Read by people and benchmarks, never by a decision."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any


class Laps:
    """A stop-watch: each lap goes to a name, and laps of a name add up (seconds).

    ``spans``: where every single lap is noted as (name, its beginning, its end), None (the default) for nowhere.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.spans: list[tuple[str, float, float]] | None = None
        self._last = time.perf_counter()

    def start(self) -> None:
        """Forget the time since the last lap."""
        self._last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        if self.spans is not None:
            self.spans.append((name, self._last, now))
        self._last = now


def trace_of(spans: dict[str, list[tuple[str, float, float]]]) -> dict[str, Any]:
    """Spans in the form that browsers' trace viewers read, a line for each key (microseconds)."""
    events = [
        {"name": name, "ph": "X", "pid": 0, "tid": line, "ts": 1e6 * begun, "dur": 1e6 * (ended - begun)}
        for line, own in enumerate(spans.values())
        for name, begun, ended in own
    ]
    names = [{"name": "thread_name", "ph": "M", "pid": 0, "tid": i, "args": {"name": n}} for i, n in enumerate(spans)]
    return {"traceEvents": [*names, *events]}
