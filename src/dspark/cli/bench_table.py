"""Rows of a bench: medians of all turns, and ratios of those that were run one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dspark.evaluation.intervals import interval

if TYPE_CHECKING:
    from dspark.load.closed import Run

_WIDE = 160  # where nobody's window sets the width
_MEDIANS = (
    "throughput_tok_s",
    "per_user_tok_s",
    "tau",
    "verify_len",
    "draft_len",
    "ttft_ms",
    "planner_ms",
    "bookkeeping_ms",
    "step_ms",
)


def row_of(mode: str, users: int, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The contract's figures of a mode, and its throughput over that of the first mode and of the best other one."""
    figures = [run.figures() for run in runs[mode]]
    medians = {name: statistics.median(each[name] for each in figures) for name in _MEDIANS}
    throughputs = [each["throughput_tok_s"] for each in figures]
    row: dict[str, Any] = {"mode": mode, "concurrency": users} | medians
    row["throughput_quartiles"] = [float(each) for each in np.percentile(throughputs, (25, 50, 75))]
    row["planner"] = {name: sum(each["planner"][name] for each in figures) for name in figures[0]["planner"]}
    row["requests"] = sum(each["requests"] for each in figures)
    first = next(iter(runs))
    others = [name for name in runs if name != mode]
    best = max(others, key=lambda name: _median(runs[name])) if others else None
    row["over"] = {"mode": first} | ratio(runs[mode], runs[first])
    row["over_best_other"] = {"mode": best} | ratio(runs[mode], runs[best]) if best else None
    return row


def ratio(mine: Sequence[Run], others: Sequence[Run]) -> dict[str, Any]:
    """Throughput over that of the other mode: the median of turns, the pooled one, and its interval over turns."""
    pairs = list(zip(mine, others, strict=True))
    sums_TC = np.array([(a.tokens, a.seconds, b.tokens, b.seconds) for a, b in pairs])
    return {
        "median": statistics.median(a.throughput / b.throughput for a, b in pairs),
        "pooled": float(_pooled(sums_TC.sum(axis=0, keepdims=True))[0]),
        "interval": interval([sums_TC], _pooled),
    }


def _pooled(sums_BC: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    a, seconds, b, others = sums_BC.T
    result: np.ndarray[Any, np.dtype[np.float64]] = a / seconds / (b / others)
    return result


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(run.throughput for run in runs)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """All modes at one number of users, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE, no_color=True)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for name in ("users", "mode", "tok/s", "quartiles", "a user", f"over {rows[0]['mode']}", "95 %", "tau"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for name in ("drafted", "verified", "first token", "step", "planning", "identical"):
        table.add_column(name, justify="right")
    for row in rows:
        low, _, high = row["throughput_quartiles"]
        within, same = row["over"]["interval"], row["identical"]
        cells = [f"{row['throughput_tok_s']:.1f}", f"{low:.1f}-{high:.1f}", f"{row['per_user_tok_s']:.1f}"]
        cells += [f"{row['over']['median']:.2f}", f"{within[0]:.2f}-{within[1]:.2f}" if within else "-"]
        cells += [f"{row[name]:.2f}" for name in ("tau", "draft_len", "verify_len")]
        cells += [f"{row[name]:.1f} ms" for name in ("ttft_ms", "step_ms")]
        cells += [f"{row['planner_ms']:.2f} ms", f"{same['equal']}/{same['total']}" if same else "-"]
        table.add_row(str(row["concurrency"]), row["mode"], *cells)
    console.print(table)
