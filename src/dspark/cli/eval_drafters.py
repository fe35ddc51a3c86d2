"""Several drafters on the same prompts as tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

_RATIOS = (("tau", "tau"), ("macro tau", "macro_tau"), ("tok/s", "tok_s"))


def tables_of_drafters(rows: Sequence[dict[str, Any]], style: box.Box | None) -> list[Table]:
    """A row a drafter: tau of each benchmark or domain and of all; speed and identity; gains over the first."""
    return [_taus(rows, style), _speeds(rows, style), *_gains(rows, style)]


def _taus(rows: Sequence[dict[str, Any]], style: box.Box | None) -> Table:
    """Benchmarks, and domains that are none of theirs."""
    first = rows[0]
    benchmarks = first.get("benchmarks", {})
    covered = {each["domain"] for each in benchmarks.values()}
    domains = [name for name in first["domains"] if name not in covered]
    table = _table(style, "tau", [*benchmarks, *domains, "macro", "all", "95 %"])
    for row in rows:
        taus = [row["benchmarks"][name]["tau"] for name in benchmarks] + [
            row["domains"][name]["tau"] for name in domains
        ]
        cells = [number(tau) for tau in (*taus, row["macro_tau"], row["tau"])]
        table.add_row(Text(row["drafter"]), *cells, between(row["intervals"]["tau"]))
    table.add_row("prompt lookup", *(number(value) for value in _lookup_taus(first, benchmarks, domains)), "")
    return table


def _lookup_taus(figures: dict[str, Any], benchmarks: Sequence[str], domains: Sequence[str]) -> list[float]:
    parts = [figures["benchmarks"][name] for name in benchmarks] + [figures["domains"][name] for name in domains]
    return [each["ngram_tau"] for each in parts] + [math.nan, figures["ngram_tau"]]


def _speeds(rows: Sequence[dict[str, Any]], style: box.Box | None) -> Table:
    table = _table(
        style, "speed", ["prompts", "tok/s", "plain", "speed-up", "95 %", "identical", "tau without repeats"]
    )
    for row in rows:
        cells = [str(row["prompts"]), number(row["tok_s"], 1), number(row["plain_tok_s"], 1), number(row["speedup"])]
        cells += [between(row["intervals"]["speedup"]), equal(row.get("identical")), number(row["tau_without_repeats"])]
        table.add_row(Text(row["drafter"]), *cells)
    first = rows[0]
    cells = [str(first["prompts"]), number(first["ngram_tok_s"], 1), number(first["plain_tok_s"], 1)]
    table.add_row("prompt lookup", *cells, number(first["ngram_speedup"]), "", equal(first.get("ngram_identical")), "")
    return table


def _gains(rows: Sequence[dict[str, Any]], style: box.Box | None) -> list[Table]:
    """Ratios of the same prompts, all together."""
    compared = [row for row in rows if "paired" in row]
    if not compared:
        return []
    table = _table(style, f"over {compared[0]['paired']['over']}", [c for name, _ in _RATIOS for c in (name, "95 %")])
    for row in compared:
        pairs = ((row["paired"][key], row["paired"]["intervals"][key]) for _, key in _RATIOS)
        table.add_row(
            Text(row["drafter"]), *(cell for ratio, low_high in pairs for cell in (number(ratio), between(low_high)))
        )
    return [table]


def _table(style: box.Box | None, corner: str, columns: Sequence[str]) -> Table:
    table = Table(box=style, pad_edge=False)
    table.add_column(Text(corner))
    for name in columns:
        table.add_column(Text(name), justify="right")
    return table


def number(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def between(bounds: list[float] | None) -> str:
    """An interval, or a dash where there is none."""
    return f"{bounds[0]:.2f}-{bounds[1]:.2f}" if bounds else "-"


def equal(same: dict[str, int] | None) -> str:
    """How many texts are plain's, or a dash where nobody asked."""
    return f"{same['equal']}/{same['total']}" if same else "-"
