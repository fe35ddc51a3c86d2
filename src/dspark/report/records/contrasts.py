"""Tables at equal tokens and at equal time, and margins beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dspark.report.figures import Axis, Between, Cell, Column, Figure, Line, Panel, Point, Table
from dspark.report.records.arms import HELD_OUT, Arm, Trial, arms_of, regimes_of

OURS = "DSpark vanilla"
# DSpark's over each in the paper's Table 1: macro averages, temperature 1, Qwen3-4B, -8B and -14B; per cent.
PAPER = {"DFlash": (16.3, 18.4), "Eagle3": (26.7, 30.9)}
_EQUAL = {"tokens": "Equal tokens", "time": "Equal wall-clock"}


def equal_tables(trials: Sequence[Trial]) -> list[Figure]:
    """Of each condition that there are runs of: its table, and DSpark's margins where it is among the arms."""
    figures = []
    for table, title in _EQUAL.items():
        arms = arms_of(trials, table)
        if arms:
            figures += [_contrast(table, title, arms), *_margins(table, title, arms)]
    return figures


def _contrast(table: str, title: str, arms: Sequence[Arm]) -> Figure:
    regimes = regimes_of(arms)
    domains = list(dict.fromkeys(n for arm in arms for r in regimes for each in arm.decoded(r) for n in each.domains))
    rows = tuple(_row(arm, regime, domains) for regime in regimes for arm in arms if _known(arm, regime))
    head = (Column("drafter"), Column("sampling"), Column("seeds"), Column("macro tau"), Column("tau"))
    told = (Column("held-out tau"), Column("million tokens"), Column("seconds", 0))
    ticks = tuple((-i, arm.name) for i, arm in enumerate(arms))
    places = {arm.name: at for at, arm in zip((at for at, _ in ticks), arms, strict=True)}
    lines = [
        Line(regime, tuple(_point(arm.macro(regime), places[arm.name]) for arm in arms if _known(arm, regime)), "marks")
        for regime in regimes
    ]
    x = Axis("held-out tau" if regimes == [HELD_OUT] else "macro tau, tokens a round", reaches=(1.0,))
    return Figure(
        f"equal-{table}",
        title,
        f"Drafters after {'as many tokens of training' if table == 'tokens' else 'as much time of training'}: macro tau"
        " (mean over domains) with the least and the largest of several seeds; tau with its 95 % interval over prompts"
        " (the widest of several seeds); held-out tau is teacher-forced, at temperature 1.",
        Table((*head, *(Column(f"tau, {name}") for name in domains), *told), rows, heads=2),
        (Panel("", x, Axis("", reaches=(0.5, 0.5 - len(arms)), ticks=ticks), tuple(lines), across=True),),
        open=True,
    )


def _known(arm: Arm, regime: str) -> bool:
    return math.isfinite(arm.macro(regime).value)


def _point(tau: Between, at: float) -> Point:
    return Point(tau.value, at, tau.low, tau.high)


def _row(arm: Arm, regime: str, domains: Sequence[str]) -> tuple[Cell, ...]:
    decoded = arm.decoded(regime)
    tau = [each.tau for each in decoded]
    ends = [each.interval for each in decoded]
    whole = Between(sum(tau) / len(tau), min(e[0] for e in ends), max(e[1] for e in ends)) if tau else None
    by_domain = (
        sum(values) / len(values) if (values := [d.domains[name] for d in decoded if name in d.domains]) else None
        for name in domains
    )
    told = arm.over_seeds(lambda trial: trial.held_out), arm.over_seeds(lambda trial: trial.tokens / 1e6).value
    seconds = arm.over_seeds(lambda trial: trial.seconds).value
    return (arm.name, regime, len(arm.trials), arm.macro(regime), whole, *by_domain, *told, seconds)


def _margins(table: str, title: str, arms: Sequence[Arm]) -> list[Figure]:
    """What DSpark gains over each other arm, in per cent of macro tau."""
    ours = next((arm for arm in arms if arm.name == OURS), None)
    others = [arm for arm in arms if arm.name != OURS]
    if ours is None or not others:
        return []
    regimes = regimes_of(arms)
    rows: list[tuple[Cell, ...]] = []
    for other in others:
        rows.append((other.name, *(margin(ours, other, regime) for regime in regimes), paper_margin(other.name)))
    columns = (Column(f"{OURS} over"), *(Column(f"{regime}, %", 1, signed=True) for regime in regimes))
    return [
        Figure(
            f"margins-{table}",
            f"{title}: what {OURS} gains",
            "Macro tau over each other drafter's, in per cent, with the least and the largest ratio of runs of the same"
            " seed; beside it the paper's own (its Table 1: temperature 1, Qwen3-4B, 8B and 14B, full training).",
            Table((*columns, Column("the paper's, %")), tuple(rows)),
        )
    ]


def paper_margin(arm: str) -> str | None:
    """What DSpark gains over it there; None where the paper tells none."""
    low, high = PAPER.get(arm, (None, None))
    return None if low is None else f"+{low} to +{high}"


def margin(ours: Arm, other: Arm, regime: str) -> Between:
    """What ours gains in per cent of macro tau: ratio of the means; the spread is of the seeds that both have."""

    def per_cent(a: float, b: float) -> float:
        return 100 * (a / b - 1) if b else math.nan

    both = [(a, b) for a in ours.trials for b in other.trials if a.seed == b.seed]
    pairs = [per_cent(Arm("", (a,)).macro(regime).value, Arm("", (b,)).macro(regime).value) for a, b in both]
    known = [each for each in pairs if math.isfinite(each)]
    value = per_cent(ours.macro(regime).value, other.macro(regime).value)
    return Between(value, min(known), max(known)) if len(known) > 1 else Between(value)
