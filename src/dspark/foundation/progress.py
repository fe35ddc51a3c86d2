"""How far long work is: a bar on a terminal, plain lines elsewhere (logs, CI), always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """What the body of ``with progress(...)`` gets."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """Add ``n`` units; ``figures`` (loss=..., tau=...) are shown beside the rate until the next call."""


@contextmanager
def progress(
    total: int | None,
    label: str,
    unit: str,
    *,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show the advance of ``total`` units (None: not known beforehand) while the body runs.

    On a terminal a bar with rate and remaining time; elsewhere a line at most every 10 s, and one at the end.
    ``enabled=False`` shows nothing (ranks other than the first). ``stream`` is stderr unless given.
    """
    stream = stream if stream is not None else sys.stderr
    if not enabled:
        yield _Silence()
    elif stream.isatty():
        with _bar(total, label, unit, stream) as bar:
            yield bar
    else:
        lines = _Lines(total, label, unit, stream, clock)
        try:
            yield lines
        finally:
            lines.close()


class _Silence:
    def advance(self, n: int = 1, **figures: float) -> None:
        """Show nothing."""


class _Lines:
    """Plain lines, at most one every 10 s besides the last."""

    def __init__(self, total: int | None, label: str, unit: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self._total, self._label, self._unit, self._stream, self._clock = total, label, unit, stream, clock
        self._done = 0
        self._start = self._last = clock()
        self._figures: dict[str, float] = {}

    def advance(self, n: int = 1, **figures: float) -> None:
        self._done += n
        self._figures = figures or self._figures
        if self._clock() - self._last >= PLAIN_EVERY_S and self._done != self._total:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self._last = self._clock()
        elapsed = self._last - self._start
        rate = self._done / elapsed if elapsed > 0 else 0.0
        parts = [_count(self._done, self._total, self._unit), f"{_number(rate)} {self._unit}/s"]
        if self._total is not None and 0 < self._done < self._total and rate > 0:
            parts.append(f"{_clock_text((self._total - self._done) / rate)} left")
        else:
            parts.append(f"{_clock_text(elapsed)} {'in all' if self._done == self._total else 'so far'}")
        print(f"{self._label}: {', '.join(parts + _shown(self._figures))}", file=self._stream, flush=True)


@contextmanager
def _bar(total: int | None, label: str, unit: str, stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=stream)) as rich:
        task = rich.add_task(label, total=total, shown=_count(0, total, unit))

        class Bar:
            def __init__(self) -> None:
                self.done = 0
                self.start = time.monotonic()
                self.figures: dict[str, float] = {}

            def advance(self, n: int = 1, **figures: float) -> None:
                self.done += n
                self.figures = figures or self.figures
                rate = self.done / max(time.monotonic() - self.start, 1e-9)
                parts = [_count(self.done, total, unit), f"{_number(rate)} {unit}/s", *_shown(self.figures)]
                rich.update(task, advance=n, shown=", ".join(parts))

        yield Bar()


def _count(done: int, total: int | None, unit: str) -> str:
    return f"{done} {unit}" if total is None else f"{done}/{total} {unit}"


def _shown(figures: dict[str, float]) -> list[str]:
    return [f"{name} {_number(value)}" for name, value in figures.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _clock_text(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
