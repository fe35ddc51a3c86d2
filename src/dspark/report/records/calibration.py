"""`dspark calibrate --json`: what confidence means (the paper's Fig. 6), and what a threshold would do (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark.report.figures import Axis, Cell, Column, Figure, Line, Panel, Point, Section, Table, numbered
from dspark.report.records.kind import Kind
from dspark.report.records.record import Record, count, drafter_name, known, numbers
from dspark.report.records.regime import regime_of

TRAINED, CALIBRATED, TILTED = "as trained", "calibrated", "calibrated and tilted"
# Names of the curves in a record, in the order that they are drawn in.
_CURVES = {"before": TRAINED, "chosen": CALIBRATED, "tilted": TILTED}
_SCORES = {"ece": "ECE", "perfect_ece": "ECE of a perfect predictor", "brier": "Brier score", "auc": "AUC"}
_SWEPT = {"acceptance": "share of verified that is accepted", "verified": "drafts verified a round", "tau": "tau"}

Curve = tuple[tuple[float, float], ...]
"""Points (predicted survival, share of prefixes that stood)."""


@dataclass(frozen=True)
class Calibration:
    """One way of sampling: curves by position and by name, and columns of the sweep by name."""

    title: str
    kind: str
    rounds: int
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    """By who said it, then by measure: ``[K]``."""
    reliability: Mapping[str, tuple[Curve, ...]]
    sweep: Mapping[str, Mapping[str, tuple[float, ...]]]

    @property
    def block(self) -> int:
        """K."""
        return len(next(iter(self.reliability.values())))


def _read(record: Record) -> Calibration:
    data, kind = record.data, str(record.data["chosen"]["kind"])
    who = {TRAINED: "before", "temperatures (STS)": "after", f"{CALIBRATED}: {kind}": "chosen", TILTED: "tilted"}
    who |= {"a constant": "constant", "the oracle": "oracle"}
    scores = {name: {key: numbers(data[at][key]) for key in _SCORES} for name, at in who.items()}
    drawn = {name: tuple(map(_curve, data["reliability"][key])) for key, name in _CURVES.items()}
    names = ("threshold", *_SWEPT)
    sweep = {_CURVES[key]: {n: numbers(data["thresholds"][key][n]) for n in names} for key in ("before", "chosen")}
    title = f"{drafter_name(str(data['drafter']))}, {regime_of(data['sampling'])}"
    return Calibration(title, kind, count(data["judged_rounds"]), scores, drawn, sweep)


def _curve(binned: Mapping[str, Any]) -> Curve:
    return tuple(zip(numbers(binned["predicted"]), numbers(binned["rate"]), strict=True))


def _section(calibrations: Sequence[Calibration]) -> Section:
    figures = [
        each for i, one in enumerate(calibrations) for each in (_reliable(i, one), _swept(i, one), _scored(i, one))
    ]
    return Section("Confidence", tuple(figures))


def _reliable(index: int, one: Calibration) -> Figure:
    panels, share = [], (0.0, 1.0)
    for k in range(one.block):
        lines = [Line(name, tuple(Point(*each) for each in curves[k])) for name, curves in one.reliability.items()]
        title = f"first {k + 1} drafts" if k else "first draft"
        axes = Axis("predicted survival", reaches=share), Axis("share that stood", reaches=share)
        panels.append(Panel(title, *axes, tuple(lines), diagonal=True))
    rows: list[tuple[Cell, ...]] = [
        (name, k, *point)
        for name, curves in one.reliability.items()
        for k, curve in enumerate(curves, 1)
        for point in curve
    ]
    columns = (Column("confidence"), Column("drafts"), Column("predicted survival", 3), Column("share that stood", 3))
    return Figure(
        numbered("reliability", index),
        f"Reliability before and after calibration (Fig. 6): {one.title}",
        f"How often so many first drafts stood over how often they were said to, in bins of equal mass, on"
        f" {one.rounds:,} rounds of prompts that the {one.kind} map was not fitted to; on the diagonal confidence means"
        " what it says.",
        Table(columns, tuple(rows), heads=2),
        tuple(panels),
        small=True,
    )


def _swept(index: int, one: Calibration) -> Figure:
    panels = [
        Panel(
            "",
            Axis("threshold of confidence", reaches=(0.0, 1.0)),
            Axis(label),
            tuple(
                Line(name, tuple(map(Point, columns["threshold"], columns[key])), "curve")
                for name, columns in one.sweep.items()
            ),
        )
        for key, label in _SWEPT.items()
    ]
    columns = (Column("confidence"), Column("threshold"), *(Column(label, 3) for label in _SWEPT.values()))
    rows: list[tuple[Cell, ...]] = [
        (name, *each)
        for name, found in one.sweep.items()
        for each in zip(found["threshold"], *(found[key] for key in _SWEPT), strict=True)
    ]
    return Figure(
        numbered("thresholds", index),
        f"A fixed threshold (Fig. 5): {one.title}",
        "What rounds would have been, had each verified its drafts up to the first whose confidence is below a"
        " threshold: a higher one verifies fewer, of which more are accepted. (The paper, on chat: 45.7 % at 0, 95.7 %"
        " at 0.8.)",
        Table(columns, tuple(rows), heads=2),
        tuple(panels),
    )


def _scored(index: int, one: Calibration) -> Figure:
    rows: list[tuple[Cell, ...]] = [
        (label, name, *scores[key]) for key, label in _SCORES.items() for name, scores in one.scores.items()
    ]
    columns = (Column("measure"), Column("confidence"), *(Column(str(k), 3) for k in range(1, one.block + 1)))
    return Figure(
        numbered("scores", index),
        f"How good confidence is: {one.title}",
        "Of so many first drafts standing: calibration error (ECE; a constant can win it), Brier score (smaller is"
        " better) and AUC (.5 is a coin), beside a constant, and an oracle that knows every draft's chance.",
        Table(columns, tuple(rows), heads=2),
    )


def _facts(record: Record) -> dict[str, str]:
    names = ("target", "drafter", "dtype", "max_tokens", "seed", "prompts", "judge", "rounds")
    machine = record.data.get("machine") or {}
    return known(record.data, names) | {"sampling": regime_of(record.data["sampling"])} | known(machine, machine)


CALIBRATION = Kind(
    "calibration",
    (frozenset({"reliability", "thresholds", "judged_rounds"}),),
    "reliability before and after (Fig. 6), and the sweep of a threshold (Fig. 5)",
    "dspark calibrate --prompts FILE --json calibrate.json",
    _read,
    _section,
    _facts,
)
