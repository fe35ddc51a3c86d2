"""`dspark bench --json`: an engine under load, a row a mode and number of users (the paper's Fig. 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark.report.figures import Axis, Between, Cell, Column, Figure, Line, Panel, Point, Section, Table, numbered
from dspark.report.records.kind import Kind
from dspark.report.records.record import Record, bounds, count, known, number, numbers
from dspark.report.records.regime import Same, regime_of

THROUGHPUT, PER_USER, USERS = "tokens a second of all users", "tokens a second of a user", "users"


@dataclass(frozen=True)
class Row:
    """A mode with so many users."""

    mode: str
    users: int
    throughput: Between
    """With its quartiles over turns."""
    per_user: float
    tau: float
    drafted: float
    verified: float
    first_ms: float
    step_ms: float
    over: tuple[str, Between] | None
    """The mode that throughput is compared with, and the ratio."""
    same: Same | None


@dataclass(frozen=True)
class Bench:
    """All rows of a run."""

    title: str
    rows: tuple[Row, ...]

    def lines(self, point: Callable[[Row], Point]) -> tuple[Line, ...]:
        """A line a mode, a point a number of users."""
        modes = dict.fromkeys(row.mode for row in self.rows)
        by_users = sorted(self.rows, key=lambda row: row.users)
        return tuple(Line(mode, tuple(point(row) for row in by_users if row.mode == mode)) for mode in modes)


def _read(record: Record) -> Bench:
    data = record.data
    title = ", ".join((str(data["target"]), regime_of(data["sampling"]), str(data["dtype"])))
    return Bench(title, tuple(map(_row, data["rows"])))


def _row(row: Mapping[str, Any]) -> Row:
    low, middle, high = numbers(row["throughput_quartiles"])
    over = row.get("over")
    return Row(
        mode=str(row["mode"]),
        users=count(row["concurrency"]),
        throughput=Between(middle, low, high),
        per_user=number(row["per_user_tok_s"]),
        tau=number(row["tau"]),
        drafted=number(row["draft_len"]),
        verified=number(row["verify_len"]),
        first_ms=number(row["ttft_ms"]),
        step_ms=number(row["step_ms"]),
        over=(str(over["mode"]), Between(number(over["median"]), *bounds(over["interval"]))) if over else None,
        same=Same.of(row.get("identical")),
    )


def _section(benches: Sequence[Bench]) -> Section:
    figures = [figure for i, each in enumerate(benches) for figure in (_frontier(i, each), _budget(i, each))]
    return Section("Under load", tuple(figures))


def _frontier(index: int, bench: Bench) -> Figure:
    over = next((row.over[0] for row in bench.rows if row.over), "")
    columns = ("mode", USERS, "tok/s of all", "of a user", f"over {over}" if over else "over", "tau")
    digits = {"tok/s of all": 1, "of a user": 1}
    more = (Column("first token, ms", 1), Column("step, ms", 1), Column("identical"))
    head = tuple(Column(name, digits.get(name, 2)) for name in columns)
    rows: list[tuple[Cell, ...]] = [
        (
            *(row.mode, row.users, row.throughput, row.per_user, row.over[1] if row.over else None, row.tau),
            *(row.first_ms, row.step_ms, row.same.said if row.same else None),
        )
        for row in bench.rows
    ]
    lines = bench.lines(lambda row: Point(row.per_user, row.throughput.value, note=str(row.users)))
    panel = Panel("", Axis(PER_USER, reaches=(0.0,)), Axis(THROUGHPUT, reaches=(0.0,)), lines)
    return Figure(
        numbered("frontier", index),
        f"Throughput over the speed of a user (Fig. 7): {bench.title}",
        "Every point is a number of users (beside it, where there is room), every line a mode; further up and to the"
        " right is better. The table has medians of turns with quartiles, and ratios with 95 % intervals.",
        Table((*head, *more), tuple(rows), heads=2),
        (panel,),
    )


def _budget(index: int, bench: Bench) -> Figure:
    ticks = tuple((users, str(users)) for users in sorted({row.users for row in bench.rows}))
    x = Axis(USERS, "log", ticks=ticks)
    quartiles = bench.lines(lambda row: Point(row.users, row.throughput.value, row.throughput.low, row.throughput.high))
    verified = bench.lines(lambda row: Point(row.users, 1 + row.verified))
    rows = tuple((row.mode, row.users, row.throughput, row.drafted, 1 + row.verified) for row in bench.rows)
    head = (Column("mode"), Column(USERS), Column("tok/s of all", 1), Column("drafted"), Column("verified"))
    return Figure(
        numbered("budget", index),
        f"Throughput and verification budget over load (Fig. 8): {bench.title}",
        "What all users get together, with quartiles over turns, and how many tokens of a request a round verifies, the"
        " anchor counted as in the paper.",
        Table(head, rows, heads=2),
        (
            Panel("", x, Axis(THROUGHPUT, reaches=(0.0,)), quartiles),
            Panel("", x, Axis("tokens verified a round of a request", reaches=(0.0,)), verified),
        ),
    )


def _facts(record: Record) -> dict[str, str]:
    names = ("target", "drafter", "dtype", "weights", "device", "max_tokens", "seed", "repeats", "prompts")
    machine = record.data.get("machine") or {}
    return known(record.data, names) | {"sampling": regime_of(record.data["sampling"])} | known(machine, machine)


BENCH = Kind(
    "bench",
    (frozenset({"rows"}),),
    "throughput over per-user speed (Fig. 7) and the verification budget over load (Fig. 8)",
    "dspark bench --prompts FILE --json bench.json",
    _read,
    _section,
    _facts,
)
