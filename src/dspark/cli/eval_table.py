"""The figures of an evaluation as tables for people."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONFIDENCE = (
    ("calibration error", "ece"),
    ("of a perfect predictor", "perfect_ece"),
    ("Brier score", "brier"),
    ("of the best constant", "constant_brier"),
    ("AUC", "auc"),
    ("of the oracle", "oracle_auc"),
)
_WIDE = 160  # where nobody's window sets the width


def print_table(figures: dict[str, Any]) -> None:
    """Print one row a domain and one for all, then acceptance by position, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE, no_color=True)
    style = box.SIMPLE_HEAD if console.is_terminal else None
    rows = {**figures["domains"], "all": figures}
    console.print(_speeds(rows, figures["macro_tau"], style))
    console.print(_positions(rows, style))
    for line in _notes(figures):
        console.print(line, markup=False, highlight=False)


def _speeds(rows: dict[str, dict[str, Any]], macro_tau: float, style: box.Box | None) -> Table:
    table = Table(box=style, pad_edge=False)
    table.add_column("domain")
    names = (
        "prompts",
        "tau",
        "95 %",
        "tok/s",
        "plain",
        "speed-up",
        "95 %",
        "identical",
        "in repeats",
        "tau without",
    )
    for name in (*names, "lookup tau", "lookup speed-up"):
        table.add_column(name, justify="right")
    for name, f in rows.items():
        same = f.get("identical")
        cells = [_number(f["tau"]), _range(f["intervals"]["tau"]), _number(f["tok_s"], 1)]
        cells += [_number(f["plain_tok_s"], 1), _number(f["speedup"]), _range(f["intervals"]["speedup"])]
        cells += [f"{same['equal']}/{same['total']}" if same else "-", _percent(f["repeat_share"])]
        cells += [_number(f[key]) for key in ("tau_without_repeats", "ngram_tau", "ngram_speedup")]
        table.add_row(Text(name), str(f["prompts"]), *cells)
    table.caption = f"macro tau {_number(macro_tau)}"
    table.caption_justify = "left"
    return table


def _positions(rows: dict[str, dict[str, Any]], style: box.Box | None) -> Table:
    """Conditional acceptance: accepted at k over rounds where k was verified and k-1 accepted."""
    table = Table(box=style, pad_edge=False)
    table.add_column("acceptance at")
    for k in range(1, len(rows["all"]["conditional_acceptance"]) + 1):
        table.add_column(str(k), justify="right")
    for name, f in rows.items():
        pairs = zip(f["conditional_acceptance"], f["too_few_rounds"], strict=True)
        table.add_row(Text(name), *(_number(value) + ("*" if few else " ") for value, few in pairs))
    return table


def _notes(figures: dict[str, Any]) -> list[str]:
    own, copied = (figures["sources"][name] for name in ("drafter", "lookup"))
    notes = []
    if copied["rounds"]:
        notes.append(
            f"{copied['rounds']} rounds were copied by lookup (tau {_number(copied['tau'])}), {own['rounds']} were the"
            f" drafter's own (tau {_number(own['tau'])}); acceptance by position is of these alone"
        )
    notes += _confidence(figures.get("confidence"))
    if any(few for f in (figures, *figures["domains"].values()) for few in f["too_few_rounds"]):
        notes.append("* reached in fewer than 200 rounds: reported, not judged")
    notes += [
        f"{count} texts with the {what} differ from plain's by more than rounding explains"
        for what, count in unexplained(figures).items()
    ]
    return notes


def _confidence(figures: dict[str, Any] | None) -> list[str]:
    """How good confidence was; nothing where no round verified a whole block."""
    if not figures or not figures["rounds"]:
        return []
    read = f"read through a {figures['map']} map" if figures["map"] else "as it was trained"
    lines = [f"confidence in {figures['rounds']} whole rounds, {read}, of prefixes by position:"]
    for label, key in _CONFIDENCE:
        lines.append(f"  {label:23}" + "".join(f"{_number(value, 3):>8}" for value in figures[key]))
    return lines


def unexplained(figures: dict[str, Any]) -> dict[str, int]:
    """How many texts differ for no good reason, by what drafted them; only those that do."""
    ways = {"identical": "drafter", "ngram_identical": "prompt lookup"}
    counts = {what: figures[key]["unexplained"] for key, what in ways.items() if key in figures}
    return {what: count for what, count in counts.items() if count}


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _range(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.2f}-{bounds[1]:.2f}" if bounds else "-"
