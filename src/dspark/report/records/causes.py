"""Why margins are not the paper's: the same drafters trained longer, and with each other's losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dspark.report.figures import Axis, Cell, Column, Figure, Line, Panel, Point, Table
from dspark.report.records.arms import Arm, Trial, arms_of, regimes_of
from dspark.report.records.contrasts import OURS, margin, paper_margin


def cause_figures(trials: Sequence[Trial]) -> list[Figure]:
    """One, where any of the drafters was trained for several numbers of steps."""
    arms = arms_of(trials, "longer")
    amounts = sorted({trial.steps for arm in arms for trial in arm.trials if math.isfinite(trial.steps)})
    if len(amounts) < 2:
        return []
    regimes = regimes_of(arms)
    ends = "in per cent of macro tau; with several seeds the least and the largest"
    return [
        Figure(
            "causes",
            f"What {OURS} gains with more training",
            f"The supposed cause of margins that are not the paper's, varied: the same drafters after more steps, and"
            f" DFlash with DSpark's losses. Macro tau over steps of training, and what {OURS} gains, {ends}.",
            Table(_columns(regimes), tuple(_rows(arms, arms_of(trials, "losses"), amounts, regimes)), heads=2),
            tuple(_panel(arms, amounts, regime) for regime in regimes),
        )
    ]


def _columns(regimes: Sequence[str]) -> tuple[Column, ...]:
    gains = (Column(f"{regime}, %", 1, signed=True) for regime in regimes)
    return (Column(f"{OURS} over"), Column("steps"), *gains, Column("the paper's, %"))


def _rows(
    arms: Sequence[Arm], others: Sequence[Arm], amounts: Sequence[float], regimes: Sequence[str]
) -> list[tuple[Cell, ...]]:
    ours = next((arm for arm in arms if arm.name == OURS), Arm(OURS, ()))
    rows: list[tuple[Cell, ...]] = []
    for other in (*(arm for arm in arms if arm is not ours), *others):
        for steps in amounts:
            pair = _after(ours, steps), _after(other, steps)
            if all(each.trials for each in pair):
                gains = (margin(*pair, regime) for regime in regimes)
                rows.append((other.name, f"{steps:g}", *gains, paper_margin(other.name)))
    return rows


def _after(arm: Arm, steps: float) -> Arm:
    return Arm(arm.name, tuple(trial for trial in arm.trials if trial.steps == steps))


def _panel(arms: Sequence[Arm], amounts: Sequence[float], regime: str) -> Panel:
    lines = []
    for arm in arms:
        found = [(steps, _after(arm, steps).macro(regime)) for steps in amounts if _after(arm, steps).trials]
        lines.append(Line(arm.name, tuple(Point(steps, tau.value, tau.low, tau.high) for steps, tau in found)))
    x = Axis("steps of training", "log", ticks=tuple((steps, f"{steps:g}") for steps in amounts))
    return Panel(regime, x, Axis("macro tau, tokens a round"), tuple(lines))
