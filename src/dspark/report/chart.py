"""A panel as inline SVG: text and lines take their colours from the page, so that it follows the theme.

Each line has a class (s0, s1, ...), whose colour the style sheet says, and a shape of its marks, for those who tell
colours badly. Marks that are no more than reported are hollow, and lines to them dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dspark.report.figures import Axis, Line, Panel, Point
from dspark.report.markup import literal
from dspark.report.scales import Scale

COLOURS = 8
_LETTER = 6.4  # width of the labels' letters, in units of the paper
_TOP, _FOOT, _LEFT, _RIGHT = 26, 42, 14, 12  # room around the plot
_ROW = 34  # of a panel whose figures lie across
_LONGEST = 22  # letters of a label
_SHAPES = (  # of marks, around their middle
    "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "m-3.2-3.2h6.4v6.4h-6.4z",
    "m0-4.6l4.4 7.6h-8.8z",
    "m0-4.6l4.6 4.6l-4.6 4.6l-4.6-4.6z",
)


@dataclass(frozen=True)
class Paper:
    """Size of a panel in units of its view box; ``ticks``: labels of an axis at most."""

    width: int
    height: int
    ticks: int


LARGE, SMALL = Paper(420, 280, 6), Paper(210, 210, 3)


def look(index: int) -> str:
    """The CSS class of the line of that number."""
    return f"s{index % COLOURS}"


def swatch(index: int) -> str:
    """The mark of the line of that number, for a legend."""
    return f'<svg class="{look(index)}" viewBox="0 0 14 14" aria-hidden="true">{_mark(7, 7, index)}</svg>'


def chart(panel: Panel, names: Sequence[str], paper: Paper) -> str:
    """The panel; ``names``: of all lines of its section, whose places are their colours."""
    if panel.across:
        paper = Paper(paper.width, 20 + _FOOT + _ROW * len(panel.y.ticks), paper.ticks)
    plot = _Plot.of(panel, paper)
    body = plot.frame() + "".join(plot.line(line, names.index(line.name)) for line in panel.lines) + plot.notes(names)
    what = f"{panel.y.label} over {panel.x.label}" if panel.y.label else panel.x.label
    label = f"{panel.title}: {what}" if panel.title else what
    return (
        f'<svg class="chart" viewBox="0 0 {paper.width} {paper.height}" role="img" aria-label="{literal(label)}">'
        f"{body}</svg>"
    )


@dataclass(frozen=True)
class _Plot:
    """A panel with the scales of its two axes."""

    panel: Panel
    paper: Paper
    x: Scale
    y: Scale

    @classmethod
    def of(cls, panel: Panel, paper: Paper) -> _Plot:
        """With room for all points, their intervals and the labels."""
        points = [point for line in panel.lines for point in line.points]
        ends = [each for point in points for each in (point.low, point.high)]
        ends += [panel.level] if panel.level is not None else []
        across, up = [point.x for point in points], [point.y for point in points]
        (across if panel.across else up).extend(ends)
        if panel.diagonal:  # both sides alike
            across = up = across + up
        y = Scale.of(panel.y, up, paper.height - _FOOT, _TOP if panel.y.label else 8)
        widest = max((len(text) for _, text in _ticks(panel.y, y, paper)), default=1)
        return cls(panel, paper, Scale.of(panel.x, across, _LEFT + _LETTER * widest, paper.width - _RIGHT), y)

    def frame(self) -> str:
        """Grid, labels, and lines to compare with."""
        panel, paper, x, y = self.panel, self.paper, self.x, self.y
        foot = f"M{_at(x.start)} {_at(y.start)}H{_at(x.end)}"
        grid, texts = "", ""
        for value, text in _ticks(panel.y, y, paper):
            grid += f"M{_at(x.start)} {_at(y.at(value))}H{_at(x.end)}"
            texts += _text(x.start - 6, y.at(value) + 4, text, "end")
        for value, text in _ticks(panel.x, x, paper):
            texts += _text(x.at(value), y.start + 16, text)
        texts += _text(2, 12, panel.y.label, "start", "label") if panel.y.label else ""
        texts += _text((x.start + x.end) / 2, paper.height - 6, panel.x.label, kind="label")
        guides = f"M{_at(x.start)} {_at(y.start)}L{_at(x.end)} {_at(y.end)}" if panel.diagonal else ""
        if panel.level is not None:
            up, along = f"M{_at(x.at(panel.level))} {_at(y.start)}V{_at(y.end)}", f"M{_at(x.start)} "
            guides += up if panel.across else f"{along}{_at(y.at(panel.level))}H{_at(x.end)}"
        guide = f'<path class="guide" d="{guides}"/>' if guides else ""
        return f'<path class="grid" d="{grid}"/><path class="axis" d="{foot}"/>{guide}{texts}'

    def line(self, line: Line, index: int) -> str:
        """Its pieces, intervals and marks."""
        points = [point for point in line.points if self.x.holds(point.x) and self.y.holds(point.y)]
        places = [(self.x.at(point.x), self.y.at(point.y)) for point in points]
        body = ""
        if line.look != "marks":
            for kind, firm in (("line", True), ("line few", False)):
                body += _joined(kind, [a + b for a, b in _pieces(points, places, firm)])
        for point, (x, y) in zip(points, places, strict=True):
            body += self._interval(point, x, y)
            if line.look != "curve":
                body += _mark(x, y, index, point.firm, self._said(line, point))
        return f'<g class="{look(index)}">{body}</g>'

    def notes(self, names: Sequence[str]) -> str:
        """Those of the last line first; one that would stand on a mark or on another is left out."""
        seen = [
            (line, point, (self.x.at(point.x), self.y.at(point.y)))
            for line in reversed(self.panel.lines)
            for point in line.points
            if self.x.holds(point.x) and self.y.holds(point.y)
        ]
        body, taken = "", [place for _, _, place in seen]
        for line, point, (x, y) in seen:
            middle = (x + 6 + _LETTER * len(point.note) / 2, y - 5)
            near = (abs(middle[0] - a) < 9 and abs(middle[1] - b) < 8.5 for a, b in taken)
            if point.note and not any(near):
                taken.append(middle)
                note = _text(*middle, point.note, kind="beside")
                body += f'<g class="{look(names.index(line.name))}">{note}</g>'
        return body

    def _interval(self, point: Point, x: float, y: float) -> str:
        scale = self.x if self.panel.across else self.y
        if not (scale.holds(point.low) and scale.holds(point.high)):
            return ""
        low, high = _at(scale.at(point.low)), _at(scale.at(point.high))
        d = f"M{low} {_at(y)}H{high}" if self.panel.across else f"M{_at(x)} {low}V{high}"
        return f'<path class="whisker" d="{d}"/>'

    def _said(self, line: Line, point: Point) -> str:
        """What a mark says when it is pointed at."""
        x = f"{self.panel.x.label} {point.x:.4g}"
        return f"{line.name}: {x}" if self.panel.across else f"{line.name}: {x}, {self.panel.y.label} {point.y:.4g}"


Place = tuple[float, float]


def _ticks(axis: Axis, scale: Scale, paper: Paper) -> list[tuple[float, str]]:
    asked = [(at, text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…") for at, text in axis.ticks]
    return asked or scale.ticks(paper.ticks)


def _pieces(points: Sequence[Point], places: Sequence[Place], firm: bool) -> list[tuple[Place, Place]]:
    """Of a line, those whose two ends are both firm, or the others."""
    ends = zip(pairwise(points), pairwise(places), strict=True)
    return [(a, b) for (one, other), (a, b) in ends if (one.firm and other.firm) == firm]


def _joined(kind: str, pieces: Sequence[tuple[float, ...]]) -> str:
    """Pieces as one path; those that follow each other share their ends."""
    d, last = "", None
    for x0, y0, x1, y1 in pieces:
        d += ("" if last == (x0, y0) else f"M{_at(x0)} {_at(y0)}") + f"L{_at(x1)} {_at(y1)}"
        last = (x1, y1)
    return f'<path class="{kind}" d="{d}"/>' if d else ""


def _mark(x: float, y: float, index: int, firm: bool = True, said: str = "") -> str:
    shape = _SHAPES[(index + index // COLOURS) % len(_SHAPES)]
    title = f"<title>{literal(said)}</title>" if said else ""
    return f'<path class="mark{"" if firm else " few"}" d="M{_at(x)} {_at(y)}{shape}">{title}</path>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{_at(x)}" y="{_at(y)}" text-anchor="{anchor}">{literal(text)}</text>'


def _at(value: float) -> str:
    """A place on the paper: tenths of a unit are finer than anybody sees."""
    return f"{value:.1f}".removesuffix(".0")
