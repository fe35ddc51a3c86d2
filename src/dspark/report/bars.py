"""Inline SVG: bars of a speed with its quartiles, and a strip of rounds. No text inside, so that both may stretch."""

from __future__ import annotations

from collections.abc import Sequence

from dspark.report.demo import RoundBar, Spread
from dspark.report.markup import literal

_COLUMN, _WIDTH = 11, 9  # pitch and width of a round
_ROW, _HEIGHT = 6, 5  # pitch and height of a token


def bar(spread: Spread, largest: float, kind: str, label: str) -> str:
    """A horizontal bar up to the median, with a line from quartile to quartile; ``kind`` is a CSS class."""
    scale = 100 / largest if largest > 0 else 0.0
    low, middle, high = (f"{scale * value:.2f}" for value in (spread.low, spread.median, spread.high))
    whisker = f"M{low} 6H{high}M{low} 3V9M{high} 3V9"
    return (
        f'<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{literal(label)}">'
        f'<path class="{literal(kind)}" d="M0 0H{middle}V12H0z"/>'
        f'<path class="halo" d="{whisker}"/><path class="whisker" d="{whisker}"/></svg>'
    )


def strip(rounds: Sequence[RoundBar]) -> str:
    """One column a round: at the foot the target's own token, then accepted drafts or copies, then rejected ones."""
    top = max((bar.drafted for bar in rounds), default=0) + 1
    cells: dict[str, list[str]] = {"own": [], "accepted": [], "copied": [], "rejected": []}
    for number, one in enumerate(rounds):
        own = one.tokens - one.accepted
        kept = "copied" if one.copied else "accepted"
        fates = ["own"] * own + [kept] * one.accepted + ["rejected"] * (one.drafted - one.accepted)
        for place, fate in enumerate(fates):
            x, y = number * _COLUMN, (top - 1 - place) * _ROW
            cells[fate].append(f"M{x} {y}h{_WIDTH}v{_HEIGHT}h-{_WIDTH}z")
    width, height = max(1, len(rounds)) * _COLUMN, top * _ROW
    drafted, accepted = sum(b.drafted for b in rounds), sum(b.accepted for b in rounds)
    label = f"{len(rounds)} rounds, {accepted} of {drafted} drafted tokens accepted"
    paths = "".join(f'<path class="{kind}" d="{"".join(d)}"/>' for kind, d in cells.items() if d)
    return (
        f'<svg class="strip" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img"'
        f' aria-label="{label}">{paths}</svg>'
    )
