"""Conditional acceptance by position (the paper's Fig. 2), of whatever measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.report.figures import Axis, Cell, Column, Line, Panel, Point, Table

ENOUGH_ROUNDS = 200  # positions reached in fewer rounds are reported, not judged


@dataclass(frozen=True)
class Acceptance:
    """``rates [K]``: accepted at k over the rounds that ``reached [K]`` it."""

    name: str
    rates: tuple[float, ...]
    reached: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.reached):
            raise ValueError(f"acceptance is told at {len(self.rates)} positions, rounds at {len(self.reached)}")


def acceptance_panel(title: str, acceptances: Sequence[Acceptance]) -> Panel:
    """A line a drafter; positions that too few rounds reached are hollow."""
    longest = max((len(each.rates) for each in acceptances), default=1)
    lines = [
        Line(
            each.name,
            tuple(
                Point(k, rate, firm=reached >= ENOUGH_ROUNDS)
                for k, (rate, reached) in enumerate(zip(each.rates, each.reached, strict=True), 1)
            ),
        )
        for each in acceptances
    ]
    ticks = tuple((k, str(k)) for k in range(1, longest + 1))
    return Panel(
        title, Axis("position in the block", ticks=ticks), Axis("share accepted", reaches=(0.0, 1.0)), tuple(lines)
    )


def acceptance_table(acceptances: Sequence[Acceptance]) -> Table:
    """Rates, and the rounds that reached each position."""
    longest = max((len(each.rates) for each in acceptances), default=1)
    rows: list[tuple[Cell, ...]] = []
    for each in acceptances:
        none = (None,) * (longest - len(each.rates))
        rows.append((each.name, "accepted", *each.rates, *none))
        rows.append((each.name, "rounds", *each.reached, *none))
    columns = (Column("drafter"), Column(""), *(Column(str(k)) for k in range(1, longest + 1)))
    return Table(columns, tuple(rows), heads=2)
