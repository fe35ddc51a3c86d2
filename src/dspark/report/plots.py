"""Plots of figures that are in a --json too, as SVG: the same numbers give the same file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from dspark.foundation.artifacts import write_atomic

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dspark",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
}
_BEFORE, _FITTED, _AFTER, _FAINT = "#c2571a", "#7fa37a", "#1f5fa8", "#9a9a9a"

Binned = Mapping[str, Sequence[float]]


def reliability_plot(
    path: Path, before: Sequence[Binned], after: Sequence[Binned], tilted: Sequence[Binned], title: str
) -> None:
    """One panel a position: how often prefixes stood over how often they were predicted to, before and after a fit, and
    as each request's own rounds tilt it.
    """
    looks = ((_BEFORE, "as trained"), (_FITTED, "calibrated"), (_AFTER, "and tilted"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * len(before) + 0.6, 2.9), layout="constrained")
        panels = figure.subplots(1, len(before), sharex=True, sharey=True, squeeze=False)[0]
        for k, (panel, *curves) in enumerate(zip(panels, before, after, tilted, strict=True)):
            panel.plot((0, 1), (0, 1), color=_FAINT, linewidth=0.8)
            for curve, (colour, label) in zip(curves, looks, strict=True):
                panel.plot(curve["predicted"], curve["rate"], ".-", color=colour, linewidth=1.0, label=label)
            panel.set_title(f"first {k + 1}" if k else "first draft", fontsize=9)
            panel.set_box_aspect(1)
        panels[0].set_ylabel("share that stood")
        figure.supxlabel("predicted survival", fontsize=9)
        panels[0].legend(frameon=False, fontsize=7, loc="upper left")
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def threshold_plot(path: Path, before: Binned, after: Binned, title: str) -> None:
    """Acceptance, drafts verified a round and tau over a fixed threshold of confidence (the paper's Fig. 5)."""
    names = {"acceptance": "accepted of verified", "verified": "verified a round", "tau": "tau"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.7), layout="constrained")
        for panel, (name, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
            for curve, colour, which in ((before, _BEFORE, "as trained"), (after, _AFTER, "calibrated")):
                panel.plot(curve["threshold"], curve[name], color=colour, label=which)
            panel.set_xlabel("threshold")
            panel.set_title(label, fontsize=9)
        panel.legend(frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def cost_plot(path: Path, plain: Sequence[tuple[int, float, float]], all_steps: Sequence[tuple[float, float]]) -> None:
    """Steps a second over tokens, measured and fitted (``plain``: tokens, measured and foretold seconds of steps in
    which nobody drafts), and foretold over measured seconds of all steps.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        tokens, measured, foretold = zip(*plain, strict=True)
        left.plot(tokens, [1 / each for each in measured], ".", color=_BEFORE, label="measured", markersize=4)
        left.plot(tokens, [1 / each for each in foretold], "x", color=_AFTER, label="fitted", markersize=4)
        left.set(xscale="log", yscale="log", xlabel="tokens of a step", ylabel="steps a second")
        left.legend(frameon=False)
        ends = [1000 * end(each for pair in all_steps for each in pair) for end in (min, max)]
        right.plot(ends, ends, color=_FAINT, linewidth=0.8)
        right.plot(*([1000 * each for each in side] for side in zip(*all_steps, strict=True)), ".", color=_AFTER, ms=4)
        right.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="foretold, ms")
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As SVG without a date, written whole or not at all."""
    nothing: dict[str, Any] = {"Date": None}
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="svg", metadata=nothing))
