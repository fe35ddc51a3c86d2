"""Scales of a chart: where values lie between two ends of the paper, and round numbers to label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dspark.report.figures import Axis

_AIR = 0.04  # of the range, beyond the outermost values
_DECADES = 2.2  # above so many only powers of ten are labelled


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on the paper from ``start`` to ``end``."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def of(cls, axis: Axis, values: Iterable[float], start: float, end: float) -> Scale:
        """Room for all values and for what the axis reaches; only positive ones have a place on a log scale."""
        log = axis.scale == "log"
        asked, known = _places(axis.reaches, log), _places((*values, *(at for at, _ in axis.ticks)), log)
        low, high = min((*known, *asked), default=0.0), max((*known, *asked), default=1.0)
        if low == high:
            return cls(low - (0.1 * abs(low) or 0.5), high + (0.1 * abs(high) or 0.5), log, start, end)
        air = _AIR * (high - low)  # which an end that was asked for does not need
        return cls(low - air * (low not in asked), high + air * (high not in asked), log, start, end)

    def at(self, value: float) -> float:
        """Its place on the paper."""
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether it has a place."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """At most so many round numbers (about, on a log scale), and how they are written."""
        return self._log_ticks() if self.log else self._linear_ticks(most)

    def _linear_ticks(self, most: int) -> list[tuple[float, str]]:
        least = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(least))
        step = next(each * power for each in (1, 2, 5, 10) if each * power >= least * (1 - 1e-9))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]

    def _log_ticks(self) -> list[tuple[float, str]]:
        heads = (1,) if self.high - self.low > _DECADES else (1, 2, 5)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [head * 10.0**power for power in powers for head in heads]
        return [(v, f"{v:.10g}") for v in values if self.low <= math.log10(v) + 1e-9 and math.log10(v) <= self.high]


def _places(values: Iterable[float], log: bool) -> list[float]:
    """Of those that have one."""
    return [math.log10(each) if log else each for each in values if math.isfinite(each) and (each > 0 or not log)]
