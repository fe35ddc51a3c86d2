"""Plots of an engine under load: what users see over what a machine does, and what grows with their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from dspark.report.plots import STYLE, save

_COLOURS = ("#9a9a9a", "#7fa37a", "#c9a227", "#a05195", "#c2571a", "#1f5fa8")

Row = Mapping[str, Any]


def frontier_plot(path: Path, rows: Sequence[Row]) -> None:
    """Throughput of the machine over the speed that a user sees, a line a mode, a point a number of users (Fig. 7)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 4.2), layout="constrained")
        panel = figure.subplots()
        for mode, colour in _coloured(rows):
            mine = [row for row in rows if row["mode"] == mode]
            x, y = ([row[name] for row in mine] for name in ("per_user_tok_s", "throughput_tok_s"))
            panel.plot(x, y, ".-", color=colour, label=mode, linewidth=1.0)
            for row in mine:
                at = (row["per_user_tok_s"], row["throughput_tok_s"])
                panel.annotate(
                    str(row["concurrency"]), at, (3, 3), textcoords="offset points", fontsize=6, color=colour
                )
        panel.set(xlabel="tokens a second of a user", ylabel="tokens a second of all")
        panel.legend(frameon=False, fontsize=8, title="mode (numbers: users)", title_fontsize=7)
        save(figure, path)


def budget_plot(path: Path, rows: Sequence[Row]) -> None:
    """Throughput, and tokens verified a round (the anchor counts), over the number of users (Fig. 8)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for mode, colour in _coloured(rows):
            mine = sorted((row for row in rows if row["mode"] == mode), key=lambda row: int(row["concurrency"]))
            users = [row["concurrency"] for row in mine]
            low, high = ([row["throughput_quartiles"][end] for row in mine] for end in (0, 2))
            left.plot(users, [row["throughput_tok_s"] for row in mine], ".-", color=colour, label=mode, linewidth=1.0)
            left.fill_between(users, low, high, color=colour, alpha=0.2, linewidth=0)
            right.plot(users, [1 + row["verify_len"] for row in mine], ".-", color=colour, linewidth=1.0)
        left.set(xlabel="users", ylabel="tokens a second of all", xscale="log")
        right.set(xlabel="users", ylabel="verified a round", xscale="log")
        for panel in (left, right):
            panel.set_xticks(sorted({row["concurrency"] for row in rows}), minor=False)
            panel.xaxis.set_major_formatter("{x:.0f}")
            panel.minorticks_off()
        left.legend(frameon=False, fontsize=8)
        save(figure, path)


def _coloured(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each mode with a colour, the last the strongest."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    return [(mode, _COLOURS[(i - len(modes)) % len(_COLOURS)]) for i, mode in enumerate(modes)]
