"""How fast the drafters of a comparison decode: tokens a second over plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence

from dspark.report.figures import Axis, Between, Cell, Column, Figure, Line, Panel, Point, Table
from dspark.report.records.arms import Arm, Trial, arms_of


def speed_figures(trials: Sequence[Trial]) -> list[Figure]:
    """One, where anything was timed."""
    timed = [arm for arm in arms_of(trials, "tokens") if any(trial.speed for trial in arm.trials)]
    regimes = list(dict.fromkeys(regime for arm in timed for trial in arm.trials for regime in trial.speed))
    rows: list[tuple[Cell, ...]] = [
        (arm.name, regime, _speedup(trial, regime), trial.speed[regime].tau)
        for regime in regimes
        for arm, trial in map(_timed, timed)
        if regime in trial.speed
    ]
    if not rows:
        return []
    ticks = tuple((-i, arm.name) for i, arm in enumerate(timed))
    lines = [Line(regime, tuple(_points(timed, regime)), "marks") for regime in regimes]
    x, y = Axis("tokens a second over plain decoding's"), Axis("", reaches=(0.5, 0.5 - len(timed)), ticks=ticks)
    columns = (Column("drafter"), Column("sampling"), Column("speed-up"), Column("tau as timed"))
    return [
        Figure(
            "measured-speed",
            "Measured speed-up",
            "One user, all drafters and plain decoding in turn, each with as many drafts as pay for it (so tau is of"
            " shorter blocks than in the other tables); with the 95 % interval over prompts. Equal tokens of training.",
            Table(columns, tuple(rows), heads=2),
            (Panel("", x, y, tuple(lines), across=True),),
            open=True,
        )
    ]


def _timed(arm: Arm) -> tuple[Arm, Trial]:
    return arm, next(trial for trial in arm.trials if trial.speed)


def _speedup(trial: Trial, regime: str) -> Between:
    found = trial.speed[regime]
    return Between(found.speedup, *found.interval)


def _points(arms: Sequence[Arm], regime: str) -> list[Point]:
    found = [(-i, _speedup(trial, regime)) for i, (_, trial) in enumerate(map(_timed, arms)) if regime in trial.speed]
    return [Point(each.value, at, each.low, each.high) for at, each in found]
