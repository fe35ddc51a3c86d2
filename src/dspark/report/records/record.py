"""A file that a verb wrote, and how its values are taken: what is none raises ValueError."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_LARGEST = 1e15  # of what is measured here


@dataclass(frozen=True)
class Record:
    """``name``: its file and folder; ``rows``: the objects in it, one of a JSON file; ``recipe``: of a training run, as
    YAML beside its log.
    """

    name: str
    digest: str
    rows: tuple[Mapping[str, Any], ...]
    recipe: Mapping[str, Any]

    @property
    def data(self) -> Mapping[str, Any]:
        """The (first) object."""
        return self.rows[0]

    @property
    def folder(self) -> str:
        """The name of its folder, that of a training run."""
        return PurePath(self.name).parent.name or self.name


def number(value: Any) -> float:
    """A figure; null is NaN, which no JSON has."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise ValueError(f"{_short(value)} stands where a number is expected")
    return float(value)


def numbers(values: Any) -> tuple[float, ...]:
    """A list of figures."""
    if not isinstance(values, list):
        raise ValueError(f"{_short(values)} stands where a list of numbers is expected")
    return tuple(map(number, values))


def count(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
        raise ValueError(f"{_short(value)} stands where a whole number is expected")
    return value


def bounds(value: Any) -> tuple[float, float]:
    """The ends of an interval; null is none."""
    if value is None:
        return math.nan, math.nan
    low, high = numbers(value)
    return low, high


def known(data: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Those of the names that the record tells of, as text."""
    return {name.replace("_", " "): said(data[name]) for name in names if data.get(name) not in (None, [], {})}


def said(value: Any) -> str:
    """A value as text: a path by its last two names (what lies before them means nothing elsewhere)."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return place(value) if isinstance(value, str) else str(value)


def place(text: str) -> str:
    """The last two names of a path; anything else as it is."""
    path = PurePath(text)
    return str(PurePath(*path.parts[-2:])) if len(path.parts) > 2 else text


def drafter_name(text: str) -> str:
    """A drafter as people call it: that of a run by the run's name."""
    path = PurePath(text)
    return path.parent.name if path.name == "drafter" and path.parent.name else place(text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:40] + "..."
