"""A histogram that costs the engine's thread next to nothing: it is read at the moment of a scrape."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.utils import floatToGoString


class Histogram:
    """Counts of values at or below each of ``bounds``, which rise; any number of readers, one writer."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self.total = 0.0
        """Of all values."""

    def add(self, value: float, times: int = 1) -> None:
        """The same value so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """``(bound, values at or below it)``, as Prometheus has them."""
        return list(zip(map(floatToGoString, self._bounds), map(float, accumulate(self._counts)), strict=True))
