"""Where in a block, and where in a text, drafts are accepted: at equal tokens of training."""

from __future__ import annotations

from collections.abc import Sequence

from dspark.report.figures import Axis, Cell, Column, Figure, Line, Panel, Point, Table
from dspark.report.records.arms import Arm, Trial, arms_of, regimes_of
from dspark.report.records.positions import ENOUGH_ROUNDS, acceptance_panel, acceptance_table


def place_figures(trials: Sequence[Trial]) -> list[Figure]:
    """Of real decoding alone: where nothing was decoded there are none."""
    arms = arms_of(trials, "tokens")
    regimes = [regime for regime in regimes_of(arms) if any(arm.decoded(regime) for arm in arms)]
    return [_positions(arms, regimes), *_contexts(arms, regimes)] if regimes else []


def _positions(arms: Sequence[Arm], regimes: Sequence[str]) -> Figure:
    panels, tables = [], []
    for regime in regimes:
        acceptances = [arm.acceptance(regime) for arm in arms if arm.decoded(regime)]
        panels.append(acceptance_panel(regime, acceptances))
        tables.append((regime, acceptance_table(acceptances)))
    widest = max((table.columns for _, table in tables), key=len)
    rows = tuple((regime, *row, *(None,) * (len(widest) - len(row))) for regime, table in tables for row in table.rows)
    return Figure(
        "acceptance",
        "Acceptance by position (Fig. 2)",
        "How often the draft at each position is accepted, given that those before it were, at equal tokens; hollow:"
        " reached in fewer than 200 rounds, reported and not judged. (The paper, first position, math: DSpark 0.93,"
        " DFlash 0.88, Eagle3 0.81; DFlash decays along the block.)",
        Table((Column("sampling"), *widest), rows, heads=3),
        tuple(panels),
    )


def _contexts(arms: Sequence[Arm], regimes: Sequence[str]) -> list[Figure]:
    rows: list[tuple[Cell, ...]] = []
    panels = []
    for regime in regimes:
        lines = []
        for arm in arms:
            contexts = arm.contexts(regime)
            points = (Point((c.low + c.high) / 2, c.tau, firm=c.rounds >= ENOUGH_ROUNDS) for c in contexts)
            lines.append(Line(arm.name, tuple(points)))
            rows += [(arm.name, regime, f"{c.low:.0f} to {c.high:.0f}", c.tau, c.rounds) for c in contexts]
        panels.append(
            Panel(regime, Axis("tokens of context", reaches=(0.0,)), Axis("tau", reaches=(1.0,)), tuple(lines))
        )
    names = ("drafter", "sampling", "tokens of context", "tau", "rounds")
    if not rows:
        return []
    return [
        Figure(
            "contexts",
            "Acceptance over the length of the context",
            "Tokens gained a round by how many tokens stood before it, at equal tokens of training; hollow: fewer than"
            " 200 rounds.",
            Table(tuple(map(Column, names)), tuple(rows), heads=3),
            tuple(panels),
        )
    ]
