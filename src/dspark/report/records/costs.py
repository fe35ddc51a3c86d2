"""`dspark profile --json`: what steps cost on a machine, measured and as the fitted model foretells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.report.figures import Axis, Column, Figure, Line, Panel, Point, Section, Table, numbered
from dspark.report.records.kind import Kind
from dspark.report.records.record import Record, count, known, number, numbers

MEASURED, FITTED = "measured", "fitted model"
OF_THE_FIT, OTHERS = "steps of the fit", "other steps"
CONTEXT = 256  # of the steps that the model is asked about


@dataclass(frozen=True)
class Step:
    """A timed step and what the model says of it, in milliseconds; ``drafting``: tokens that are drafted first."""

    tokens: int
    requests: int
    drafting: int
    measured_ms: float
    foretold_ms: float
    fitted: bool
    """Whether the model was fitted to it."""


@dataclass(frozen=True)
class Costs:
    """The model's own table (``steps_ms`` of so many tokens at a context of 256, ``drafts_ms`` of whole blocks of so
    many requests), and the steps that were timed.
    """

    title: str
    steps_ms: tuple[tuple[float, float], ...]
    drafts_ms: tuple[tuple[float, float], ...]
    timed: tuple[Step, ...]
    error: float


def _read(record: Record) -> Costs:
    data = record.data
    columns = [numbers(data[name]) for name in ("batch_tokens", "step_ms", "requests", "draft_ms")]
    timed = [
        Step(
            tokens=count(each["tokens"]),
            requests=count(each["requests"]),
            drafting=count(each["drafting"]),
            measured_ms=number(each["measured_ms"]),
            foretold_ms=number(each["foretold_ms"]),
            fitted=bool(each["fitted"]),
        )
        for each in data.get("timed", [])
    ]
    steps, drafts = (tuple(zip(*pair, strict=True)) for pair in (columns[:2], columns[2:]))
    return Costs(str(data["target"]), steps, drafts, tuple(timed), number(data["median_error"]))


def _section(profiles: Sequence[Costs]) -> Section:
    figures = []
    for i, each in enumerate(profiles):
        figures += [_capacity(i, each), *([_foretold(i, each)] if each.timed else [])]
    return Section("What steps cost", tuple(figures))


def _capacity(index: int, costs: Costs) -> Figure:
    fitted = Line(FITTED, tuple(Point(tokens, 1000 / ms) for tokens, ms in costs.steps_ms if ms > 0), "curve")
    plain = [each for each in costs.timed if not each.drafting and each.measured_ms > 0]
    measured = Line(MEASURED, tuple(Point(each.tokens, 1000 / each.measured_ms) for each in plain), "marks")
    rows = [("a step of tokens", n, ms, 1000 / ms if ms else None) for n, ms in costs.steps_ms]
    rows += [("drafts for requests", n, ms, None) for n, ms in costs.drafts_ms]
    columns = (Column("what"), Column("how many", 0), Column("ms", 1), Column("a second", 1))
    drafts = Line(FITTED, tuple(Point(*each) for each in costs.drafts_ms))
    requests, tokens = (
        Axis(label, "log", ticks=tuple((n, f"{n:.0f}") for n, _ in pairs if _power_of_two(n)))
        for label, pairs in (("requests", costs.drafts_ms), ("tokens of a step", costs.steps_ms))
    )
    return Figure(
        numbered("capacity", index),
        f"Capacity (SPS): {costs.title}",
        f"Steps a second over the tokens of a step, measured (contexts of many lengths) and as the model says for a"
        f" context of {CONTEXT}, and what drafting whole blocks adds: where the first is flat, drafts are nearly free"
        " to verify.",
        Table(columns, tuple(rows), heads=2),
        (
            Panel("", tokens, Axis("steps a second", "log"), (measured, fitted)),
            Panel("", requests, Axis("drafting adds, ms", reaches=(0.0,)), (drafts,)),
        ),
    )


def _power_of_two(number: float) -> bool:
    """These have room on an axis."""
    return number >= 1 and number == 1 << (int(number).bit_length() - 1)


def _foretold(index: int, costs: Costs) -> Figure:
    lines = [
        Line(
            name,
            tuple(Point(each.measured_ms, each.foretold_ms) for each in costs.timed if each.fitted == fitted),
            "marks",
        )
        for name, fitted in ((OF_THE_FIT, True), (OTHERS, False))
    ]
    names = ("tokens", "requests", "drafted", "measured, ms", "foretold, ms", "fitted to")
    rows = tuple(
        (each.tokens, each.requests, each.drafting, each.measured_ms, each.foretold_ms, "yes" if each.fitted else "no")
        for each in costs.timed
    )
    panel = Panel("", Axis("measured, ms", "log"), Axis("foretold, ms", "log"), tuple(lines), diagonal=True)
    return Figure(
        numbered("foretold", index),
        f"Foretold and measured steps: {costs.title}",
        f"What the model says of every timed step over what it took, drafting included; on steps that it was not fitted"
        f" to it is off by {100 * costs.error:.1f} % (median).",
        Table(tuple(Column(name, 2) for name in names), rows, heads=3),
        (panel,),
    )


def _facts(record: Record) -> dict[str, str]:
    return known(record.data, ("target", "drafter", "steps")) | known(
        machine := record.data.get("machine") or {}, machine
    )


COSTS = Kind(
    "costs",
    (frozenset({"batch_tokens", "step_ms", "draft_ms"}),),
    "the capacity curve (SPS), and foretold against measured steps",
    "dspark profile --json profile.json",
    _read,
    _section,
    _facts,
)
