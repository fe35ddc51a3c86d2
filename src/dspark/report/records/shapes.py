"""What a drafter's size is worth: depth, length of blocks; and the learning rate that it was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dspark.report.figures import Axis, Between, Cell, Column, Figure, Line, Panel, Point, Table
from dspark.report.records.arms import HELD_OUT, Arm, Trial, arms_of, regimes_of

Size = Callable[[Trial], float]


def shape_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Those that there are runs of."""
    makers = {"depth": _depth, "lengths": _lengths, "sweep": _sweep}
    found = {table: arms_of(trials, table) for table in makers}
    return [make(found[table]) for table, make in makers.items() if found[table]]


def _depth(arms: Sequence[Arm]) -> Figure:
    sized = _by_size(arms, lambda trial: trial.layers)
    return Figure(
        "depth",
        "Depth (Fig. 3)",
        "Tau over the number of a drafter's layers, with the spread of several seeds. (In the paper two layers of"
        " DSpark beat five of DFlash.)",
        _table("layers", sized),
        tuple(_panels("layers", sized)),
    )


def _lengths(arms: Sequence[Arm]) -> Figure:
    sized = _by_size(arms, lambda trial: trial.block)
    shares = [(size, arm) for size, arm in sized if math.isfinite(_head_share(arm).value)]
    panels = _panels("drafts of a block, K", sized)
    if shares:
        axes = _axis("drafts of a block, K", shares), Axis("sequential head, % of a round", reaches=(0.0,))
        panels.append(Panel("time of the sequential head", *axes, _lines(shares, _head_share)))
    return Figure(
        "lengths",
        "Length of blocks (Fig. 4)",
        "Tau over the drafts of a block, with the spread of several seeds, and how much of a drafting round's time the"
        " sequential head takes. (In the paper, whose lengths count the anchor, 0.2 to 1.3 %.)",
        _table("K", sized, (Column("sequential head, %", 1), _head_share)),
        tuple(panels),
    )


def _sweep(arms: Sequence[Arm]) -> Figure:
    sized = [(size, arm) for size, arm in _by_size(arms, lambda trial: trial.lr) if size > 0]
    x = Axis("learning rate", "log", ticks=tuple((lr, f"{lr:g}") for lr in sorted({size for size, _ in sized})))
    panel = Panel("", x, Axis(HELD_OUT), _lines(sized, lambda arm: arm.macro(HELD_OUT)))
    rows = tuple((arm.name, f"{size:g}", len(arm.trials), arm.macro(HELD_OUT)) for size, arm in sized)
    return Figure(
        "sweep",
        "Learning rates",
        "Tau on held-out answers over the learning rate of training: each drafter is compared at its own best, or at"
        " the usual rate where no other is better by more than chance.",
        Table((Column("drafter"), Column("learning rate"), Column("seeds"), Column("tau")), rows, heads=2),
        (panel,),
    )


def _head_share(arm: Arm) -> Between:
    return arm.over_seeds(lambda trial: 100 * trial.head_share)


def _by_size(arms: Sequence[Arm], size: Size) -> list[tuple[float, Arm]]:
    """The runs of each arm by their size, ascending."""
    sizes = {(size(trial), arm.name) for arm in arms for trial in arm.trials if math.isfinite(size(trial))}
    return [
        (value, Arm(arm.name, tuple(trial for trial in arm.trials if size(trial) == value)))
        for arm in arms
        for value, name in sorted(sizes)
        if name == arm.name
    ]


def _panels(label: str, sized: Sequence[tuple[float, Arm]]) -> list[Panel]:
    """Macro tau over a size, a panel a way of sampling."""
    panels = []
    for regime in regimes_of([arm for _, arm in sized]):
        y = Axis("tau" if regime == HELD_OUT else "macro tau, tokens a round")
        lines = _lines(sized, lambda arm, regime=regime: arm.macro(regime))  # type: ignore[misc]
        panels.append(Panel(regime, _axis(label, sized), y, lines))
    return panels


def _axis(label: str, sized: Sequence[tuple[float, Arm]]) -> Axis:
    return Axis(label, ticks=tuple((size, f"{size:g}") for size in sorted({size for size, _ in sized})))


def _lines(sized: Sequence[tuple[float, Arm]], figure: Callable[[Arm], Between]) -> tuple[Line, ...]:
    """A line a family of arms, a point a size."""
    families: dict[str, list[Point]] = {}
    for size, arm in sorted(sized, key=lambda each: each[0]):
        found = figure(arm)
        families.setdefault(arm.family, []).append(Point(size, found.value, found.low, found.high))
    return tuple(Line(name, tuple(points)) for name, points in families.items())


def _table(label: str, sized: Sequence[tuple[float, Arm]], *more: tuple[Column, Callable[[Arm], Between]]) -> Table:
    regimes = regimes_of([arm for _, arm in sized])
    columns = (Column("drafter"), Column(label), Column("seeds"), *(Column(f"tau, {each}") for each in regimes))
    rows: list[tuple[Cell, ...]] = [
        (arm.name, f"{size:g}", len(arm.trials), *map(arm.macro, regimes), *(figure(arm) for _, figure in more))
        for size, arm in sized
    ]
    return Table((*columns, *(column for column, _ in more)), tuple(rows), heads=2)
