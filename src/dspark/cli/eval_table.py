"""The figures of an evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dspark.cli.eval_drafters import between, equal, number, tables_of_drafters

_CONFIDENCE = (
    ("calibration error", "ece"),
    ("of a perfect predictor", "perfect_ece"),
    ("Brier score", "brier"),
    ("of the best constant", "constant_brier"),
    ("AUC", "auc"),
    ("of the oracle", "oracle_auc"),
)
_WIDE = 160  # where nobody's window sets the width
_SHOWN = 5  # turns that were left out; --json lists them all


def print_figures(figures: dict[str, Any]) -> None:
    """Print one row a benchmark, a domain and one for all, then acceptance by position, on stdout.

    Of several drafters: one row a drafter, and what each gained over the first.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE, no_color=True)
    style = box.SIMPLE_HEAD if console.is_terminal else None
    if "drafters" in figures:
        tables, notes = tables_of_drafters(figures["drafters"], style), _notes_of_drafters(figures["drafters"])
    else:
        rows = _rows(figures)
        tables, notes = [_speeds(rows, figures["macro_tau"], style), _positions(rows, style)], _notes(figures)
    for table in tables:
        console.print(table)
    for line in [*notes, *_whole(figures), *_kept(figures)]:
        console.print(line, markup=False, highlight=False)


def _rows(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Benchmarks in front of their domain, which is of them all together."""
    rows: dict[str, dict[str, Any]] = {}
    for domain, figures_of in figures["domains"].items():
        rows |= {n: each for n, each in figures.get("benchmarks", {}).items() if each["domain"] == domain}
        rows[domain] = figures_of
    return rows | {"all": figures}


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
        cells = [number(f["tau"]), between(f["intervals"]["tau"]), number(f["tok_s"], 1)]
        cells += [number(f["plain_tok_s"], 1), number(f["speedup"]), between(f["intervals"]["speedup"])]
        cells += [equal(same), _percent(f["repeat_share"])]
        cells += [number(f[key]) for key in ("tau_without_repeats", "ngram_tau", "ngram_speedup")]
        table.add_row(Text(name), str(f["prompts"]), *cells)
    table.caption = f"macro tau {number(macro_tau)}"
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
        table.add_row(Text(name), *(number(value) + ("*" if few else " ") for value, few in pairs))
    return table


def _notes(figures: dict[str, Any]) -> list[str]:
    own, copied = (figures["sources"][name] for name in ("drafter", "lookup"))
    notes = []
    if copied["rounds"]:
        notes.append(
            f"{copied['rounds']} rounds were copied by lookup (tau {number(copied['tau'])}), {own['rounds']} were the"
            f" drafter's own (tau {number(own['tau'])}); acceptance by position is of these alone"
        )
    notes += _confidence(figures.get("confidence"))
    if any(few for f in (figures, *figures["domains"].values()) for few in f["too_few_rounds"]):
        notes.append("* reached in fewer than 200 rounds: reported, not judged")
    return notes + _differences(figures)


def _differences(figures: dict[str, Any]) -> list[str]:
    return [
        f"{count} texts with the {what} differ from plain's by more than rounding explains"
        for what, count in unexplained(figures).items()
    ]


def _notes_of_drafters(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{row['drafter']}: {line}" for row in rows for line in _differences(row)]


def _whole(figures: dict[str, Any]) -> list[str]:
    """Why a speed-up may be poor that `generate` does not show."""
    said = "every draft was verified, which judges the drafter; --planned judges the speed, as `generate` decodes"
    return [] if figures["planned"] else [said]


def _kept(figures: dict[str, Any]) -> list[str]:
    """What of the figures was not measured now, and what is not in them."""
    lines = []
    if figures["kept"]:
        lines.append(f"{figures['kept']} answers were kept from an earlier start")
    if figures["left_out"]:
        turns = ", ".join(f"{each['id']} (turn {each['turn'] + 1})" for each in figures["left_out"][:_SHOWN])
        more = f" and {len(figures['left_out']) - _SHOWN} more" if len(figures["left_out"]) > _SHOWN else ""
        lines.append(f"left out, since the context has no room for an answer: {turns}{more}")
    return lines


def _confidence(figures: dict[str, Any] | None) -> list[str]:
    """How good confidence was; nothing where no round verified a whole block."""
    if not figures or not figures["rounds"]:
        return []
    read = f"read through a {figures['map']} map" if figures["map"] else "as it was trained"
    lines = [f"confidence in {figures['rounds']} whole rounds, {read}, of prefixes by position:"]
    for label, key in _CONFIDENCE:
        lines.append(f"  {label:23}" + "".join(f"{number(value, 3):>8}" for value in figures[key]))
    return lines


def unexplained(figures: dict[str, Any]) -> dict[str, int]:
    """How many texts differ for no good reason, by what drafted them; only those that do."""
    ways = {"identical": "drafter", "ngram_identical": "prompt lookup"}
    counts = {what: figures[key]["unexplained"] for key, what in ways.items() if key in figures}
    return {what: count for what, count in counts.items() if count}


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
