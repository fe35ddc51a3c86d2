"""The log of `dspark train` (RUN/log.jsonl, beside it RUN/recipe.yaml): losses, and quality on held-out answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark.report.figures import Axis, Cell, Column, Figure, Line, Panel, Point, Section, Table
from dspark.report.records.kind import Kind
from dspark.report.records.record import Record, count, known, number, numbers


@dataclass(frozen=True)
class Validation:
    """Held-out answers, teacher-forced, after so many steps."""

    step: int
    tau: float
    greedy_tau: float
    acceptance: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """The curves of a run: (step, loss), and validations."""

    name: str
    losses: tuple[tuple[int, float], ...]
    validations: tuple[Validation, ...]
    seconds: float


def _read(record: Record) -> Run:
    steps = [row for row in record.rows if "validation" not in row]
    losses = tuple((count(row["step"]), number(row["loss"])) for row in steps)
    found = tuple(_validation(row) for row in record.rows if "validation" in row)
    return Run(record.folder, losses, found, number(steps[-1]["seconds"]) if steps else number(None))


def _validation(row: Mapping[str, Any]) -> Validation:
    figures = row["validation"]
    taus = number(figures["tau"]), number(figures["greedy_tau"])
    return Validation(count(row["step"]), *taus, numbers(figures["conditional_acceptance"]))


def _section(runs: Sequence[Run]) -> Section:
    x = Axis("steps", reaches=(0.0,))
    losses = [Line(run.name, tuple(Point(*each) for each in run.losses), "curve") for run in runs]
    taus = [Line(run.name, tuple(Point(each.step, each.tau) for each in run.validations)) for run in runs]
    greedy = [Line(run.name, tuple(Point(each.step, each.greedy_tau) for each in run.validations)) for run in runs]
    drawn = {"loss": losses, "held-out tau, temperature 1": taus, "held-out tau, greedy": greedy}
    figure = Figure(
        "training",
        "Training",
        "Loss of the last steps, and the tokens that a round would gain on held-out answers (teacher-forced, whole"
        " blocks), when drafts are drawn at temperature 1 and when they are greedy.",
        _table(runs),
        tuple(
            Panel("", x, Axis(label), tuple(lines))
            for label, lines in drawn.items()
            if any(each.points for each in lines)
        ),
    )
    return Section("Training", (figure,))


def _table(runs: Sequence[Run]) -> Table:
    """A row a logged step."""
    longest = max((len(each.acceptance) for run in runs for each in run.validations), default=0)
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        losses, validations = dict(run.losses), {each.step: each for each in run.validations}
        for step in sorted(losses | validations):
            rows.append((run.name, step, losses.get(step), *_told(validations.get(step), longest)))
    columns = (Column("run"), Column("step"), Column("loss", 3), Column("tau"), Column("greedy tau"))
    accepted = (Column(f"accepted at {k}") for k in range(1, longest + 1))
    return Table((*columns, *accepted), tuple(rows), heads=2)


def _told(found: Validation | None, longest: int) -> tuple[Cell, ...]:
    if found is None:
        return (None,) * (2 + longest)
    return (found.tau, found.greedy_tau, *found.acceptance, *(None,) * (longest - len(found.acceptance)))


def _facts(record: Record) -> dict[str, str]:
    recipe = record.recipe
    seconds = [row["seconds"] for row in record.rows if "seconds" in row]
    facts = known(recipe, ("target", "dtype", "device", "data", "drafter", "loss", "optimizer", "trainer"))
    return facts | ({"training took": f"{number(seconds[-1]):.0f} s"} if seconds else {})


TRAINING = Kind(
    "training",
    (frozenset({"step", "loss"}), frozenset({"step", "validation"})),
    "training curves",
    "dspark train --recipe smollm2-135m --run my-run",
    _read,
    _section,
    _facts,
)
