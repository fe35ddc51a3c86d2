"""What a page shows, as plain values: tables, panels of lines, figures and sections. Others draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NONE = "-"  # where there is no figure


@dataclass(frozen=True)
class Between:
    """A figure with the ends of its interval or spread; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


Cell = str | int | float | Between | None


@dataclass(frozen=True)
class Column:
    """A table's column; ``digits`` behind the point of its numbers, and a sign before them where ``signed``."""

    name: str
    digits: int = 2
    signed: bool = False

    def shown(self, cell: Cell) -> tuple[str, str]:
        """The cell as text, and its interval ("" where there is none)."""
        if isinstance(cell, Between):
            ends = (cell.low, cell.high)
            known = all(math.isfinite(each) for each in (cell.value, *ends))
            return self._number(cell.value), f"[{', '.join(map(self._number, ends))}]" if known else ""
        if isinstance(cell, float):
            return self._number(cell), ""
        return NONE if cell is None else str(cell), ""

    def _number(self, value: float) -> str:
        if not math.isfinite(value):
            return NONE
        return f"{value:{'+' if self.signed else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first ``heads`` cells of a row say what it is about."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    heads: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} figures stand where {len(self.columns)} are expected")

    def asdict(self) -> dict[str, Any]:
        """For ``--json``: numbers as the records have them, an interval as its three figures."""
        return {"columns": [each.name for each in self.columns], "rows": [[*map(_plain, row)] for row in self.rows]}


def _plain(cell: Cell) -> Any:
    return {"value": cell.value, "low": cell.low, "high": cell.high} if isinstance(cell, Between) else cell


@dataclass(frozen=True)
class Axis:
    """What is drawn along one side: its label with the unit, its scale, and the values that it reaches at least."""

    label: str
    scale: Literal["linear", "log"] = "linear"
    reaches: tuple[float, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    """Where it is labelled, and how; round numbers where this is empty."""


@dataclass(frozen=True)
class Point:
    """A mark, with its interval where it has one; not ``firm``: reported, not judged. ``note`` stands beside it."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    firm: bool = True
    note: str = ""


@dataclass(frozen=True)
class Line:
    """Points under a name: joined marks, marks alone, or a curve without marks."""

    name: str
    points: tuple[Point, ...]
    look: Literal["joined", "marks", "curve"] = "joined"


@dataclass(frozen=True)
class Panel:
    """Lines on two axes. ``across``: figures are those of x, intervals too, and the ticks of y are what they are of.

    ``diagonal``: a line where y equals x; ``level``: one at a figure to compare with.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    diagonal: bool = False
    level: float | None = None
    across: bool = False


@dataclass(frozen=True)
class Figure:
    """A table, and what of it is drawn; a caption says in a sentence what it shows."""

    id: str
    title: str
    caption: str
    table: Table
    panels: tuple[Panel, ...] = ()
    small: bool = False
    """Many small panels."""
    open: bool = False
    """The table is as much worth reading as what is drawn of it."""

    def asdict(self) -> dict[str, Any]:
        """What ``--json`` tells of it."""
        return {"id": self.id, "title": self.title, "caption": self.caption, "data": self.table.asdict()}


@dataclass(frozen=True)
class Section:
    """Figures that belong together."""

    title: str
    figures: tuple[Figure, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all lines, in the order of their first appearance: each keeps its colour throughout a section."""
        panels = [panel for figure in self.figures for panel in figure.panels]
        return tuple(dict.fromkeys(line.name for panel in panels for line in panel.lines))


def numbered(name: str, index: int) -> str:
    """The id of one of several figures of a kind: the first has the bare name."""
    return f"{name}-{index + 1}" if index else name


def spread(values: Sequence[float]) -> Between:
    """Mean with the least and the largest; a single value has no spread."""
    known = [each for each in values if math.isfinite(each)]
    if not known:
        return Between(math.nan)
    mean = sum(known) / len(known)
    return Between(mean, min(known), max(known)) if len(known) > 1 else Between(mean)
