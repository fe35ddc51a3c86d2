"""Whether two runs of benchmarks/results.py agree within the spread that each of them states.

A figure agrees where the two intervals overlap: of tau and speed-up the bootstrap over prompts, of a load's gain over
plain decoding the bootstrap over turns. Tokens a second are compared by their quartiles and decide nothing: they are
the hour's as much as the code's, and the ratios of one run are what counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.foundation.artifacts import read_json
from dspark.foundation.errors import UserError


@dataclass(frozen=True)
class Spread:
    """A figure between ``low`` and ``high``; only those that ``decide`` make two runs agree or not."""

    value: float
    low: float
    high: float
    decides: bool = True

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def agrees(self, other: Spread) -> bool:
        """Whether both may be measurements of one thing."""
        return self.low <= other.high and other.low <= self.high


def compare(ours: Path, theirs: Path) -> int:
    """Say of every key figure of the records in both folders whether they agree; 1 where one does not, else 0."""
    files = [sorted(each.name for each in folder.glob("*.json")) for folder in (ours, theirs)]
    common = [name for name in files[0] if name in files[1]]
    for name in sorted({*files[0], *files[1]} - {*common}):
        print(f"{name} is in one of the runs alone")
    found = [
        verdict for name in common for verdict in _verdicts(name, read_json(ours / name), read_json(theirs / name))
    ]
    if not found:
        raise UserError(
            f"{ours} and {theirs} share no record with a spread (found {len(files[0])} and {len(files[1])} files);"
            " name the records folder of a run of benchmarks/results.py"
        )
    print(f"{sum(found)} of {len(found)} figures agree")
    return int(not all(found))


def _verdicts(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[bool]:
    """Print what became of each figure of a record; yields whether it agrees, of those that decide."""
    commands = [each.get("made", {}).get("command") for each in (ours, theirs)]
    if commands[0] != commands[1]:
        print(f"{name}: not measured alike: {commands[0]!r} and {commands[1]!r}", file=sys.stderr)
    other = dict(figures(theirs))
    for key, mine in figures(ours):
        if key in other:
            agrees = mine.agrees(other[key])
            word = ("agrees" if agrees else "DIFFERS") if mine.decides else ("about" if agrees else "moved")
            print(f"{word:8} {Path(name).stem:26} {key:36} {mine!s:28} {other[key]}")
            if mine.decides:
                yield agrees


def figures(record: dict[str, Any]) -> Iterator[tuple[str, Spread]]:
    """The key figures of a record, by name; those without a spread can't be compared."""
    if "rows" in record:
        yield from (figure for row in record["rows"] for figure in _of_load(row))
        return
    for drafter in record.get("drafters", [record]):
        for domain, each in {"all": drafter, **drafter.get("domains", {})}.items():
            for key in ("tau", "speedup"):
                if interval := each.get("intervals", {}).get(key):
                    yield f"{drafter['drafter']}, {domain}: {key}", Spread(each[key], *interval)


def _of_load(row: dict[str, Any]) -> Iterator[tuple[str, Spread]]:
    name, over = f"{row['mode']}, {row['concurrency']} users", row["over"]
    low, middle, high = row["throughput_quartiles"]
    yield f"{name}: tokens a second", Spread(middle, low, high, decides=False)
    if over["mode"] != row["mode"] and over["interval"]:
        yield f"{name}: over {over['mode']}", Spread(over["pooled"], *over["interval"])
