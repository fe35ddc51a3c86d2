"""A demo on the terminal: two columns with colour, or plain text where nobody sees colours."""

from __future__ import annotations

import unicodedata
from typing import TextIO

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dspark.report.demo import DemoRecord, PairFigures, Showing, Spread
from dspark.report.story import cautions, explanation, figure, method

# Underlined, so that they can be told from the target's own without colours too.
ACCEPTED, COPIED = "green underline", "cyan underline"
_SIDE_BY_SIDE = 76  # terminal columns that two texts need
_HEAD = ("domain", "plain tok/s", "speculative tok/s", "speed-up", "tau", "identical")


class DemoPanels:
    """Prints a demo bit by bit, each text as soon as it is there."""

    def __init__(self, stream: TextIO, width: int | None = None, force_terminal: bool | None = None) -> None:
        self._console = Console(file=stream, width=width, force_terminal=force_terminal, highlight=False)
        self._rich = self._console.is_terminal and not self._console.is_dumb_terminal
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        guillemets = "«»".encode(self._encoding, "replace") != b"??"
        self._open, self._close = ("«", "»") if guillemets else ("{+", "+}")

    def legend(self) -> None:
        """How accepted drafts are marked."""
        if self._rich:
            text = Text.assemble(
                ("accepted draft", ACCEPTED),
                ": proposed by the drafter, kept by the target; ",
                ("accepted copy", COPIED),
                ": looked up where the last words stood before, and kept; everything else the target wrote itself\n",
            )
            self._console.print(text)
        else:
            self._lines(
                f"{self._open}accepted draft{self._close}: proposed by the drafter, or looked up where the last words"
                " stood before, and kept by the target; everything else the target wrote itself\n"
            )

    def showing(self, one: Showing, number: int, total: int) -> None:
        """One prompt and its two texts."""
        plain = f"{one.plain_tok_s:.1f} tok/s, {one.plain_tokens} tokens"
        spec = f"{one.spec_tok_s:.1f} tok/s, {one.spec_tokens} tokens, tau {figure(one.tau)}"
        drafts = f"{one.accepted} of {one.drafted} drafted tokens accepted in {len(one.rounds)} rounds"
        verdict = f"{drafts}; texts: {one.verdict.sentence()}"
        if not self._rich:
            marked = "".join(
                f"{self._open}{span.text}{self._close}" if span.accepted else span.text for span in one.spec_spans
            )
            self._lines(f"[{number}/{total}] {one.domain}: {one.prompt}")
            self._lines(f"\n--- plain: {plain}\n{one.plain_text}")
            self._lines(f"\n--- speculative: {spec}\n{marked}\n\n{verdict}\n")
            return
        self._console.rule(Text(f"{number}/{total} {one.domain}", style="bold"), style="dim", align="left")
        self._console.print(Text(self._safe(one.prompt), style="italic"))
        text = Text(overflow="fold")  # a line that does not fit goes on below: nothing of a text is left out
        for span in one.spec_spans:
            style = COPIED if one.is_copy(span) else ACCEPTED
            text.append(self._safe(span.text), style if span.accepted else None)
        self._panels(Text(self._safe(one.plain_text), overflow="fold"), plain, text, spec)
        bad = one.verdict.unexplained
        self._console.print(Text(verdict, style="bold red" if bad else "dim"))
        self._console.print()

    def summary(self, record: DemoRecord) -> None:
        """The table, what it means, and what to beware of."""
        rows = [*record.pairs, record.overall] if len(record.pairs) > 1 else list(record.pairs)
        if self._rich:
            self._console.print(_table(rows, with_quartiles=self._console.width >= _SIDE_BY_SIDE))
        else:
            cells = [_HEAD, *(_cells(row) for row in rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                self._lines("  ".join(padded).rstrip())
        for paragraph in (method(record), *explanation(record)):
            self._lines("", paragraph)
        for caution in cautions(record):
            loud = record.overall.unexplained > 0 and caution.startswith("FAILURE")
            self._lines("")
            self._console.print(Text(caution, style="bold red" if loud else "yellow"), soft_wrap=not self._rich)

    def _panels(self, plain: Text, plain_note: str, spec: Text, spec_note: str) -> None:
        wide = self._console.width >= _SIDE_BY_SIDE
        width = (self._console.width - 1) // 2 if wide else self._console.width
        sides = (("plain", plain, plain_note), ("speculative", spec, spec_note))
        lines = max(len(text.wrap(self._console, width - 4)) for _, text, _ in sides) if wide else 0
        boxes = [
            Panel(
                text,
                title=name,
                subtitle=note,
                title_align="left",
                subtitle_align="left",
                border_style="dim",
                width=width,
                height=lines + 2 if wide else None,
            )
            for name, text, note in sides
        ]
        self._console.print(Columns(boxes, padding=(0, 0, 0, 0) if not wide else (0, 1, 0, 0)))

    def _safe(self, text: str) -> str:
        return printable(text, self._encoding)

    def _lines(self, *lines: str) -> None:
        for line in lines:
            # Elsewhere than on a terminal lines stay whole: other programs read them.
            self._console.print(Text(self._safe(line)), soft_wrap=not self._rich)


def _table(rows: list[PairFigures], with_quartiles: bool) -> Table:
    what = "medians over the repeats" + (" [quartiles]" if with_quartiles else "")
    table = Table(title=Text(what, style="dim"), title_justify="left")
    for name in _HEAD:
        table.add_column(name, justify="left" if name == "domain" else "right", overflow="fold")
    for row in rows:
        last = row is rows[-1] and len(rows) > 1
        if last:
            table.add_section()
        table.add_row(*map(Text, _cells(row, with_quartiles)), style="bold" if last else None)
    return table


def _cells(pair: PairFigures, with_quartiles: bool = True) -> tuple[str, ...]:
    def speed(spread: Spread) -> str:
        quartiles = f" [{spread.low:.1f}-{spread.high:.1f}]" if with_quartiles else ""
        return f"{spread.median:.1f}{quartiles}"

    same = f"{pair.equal}/{pair.total}" + (f", {pair.unexplained} UNEXPLAINED" if pair.unexplained else "")
    return (
        pair.domain,
        speed(pair.plain),
        speed(pair.spec),
        f"{pair.speedup:.2f}x",
        figure(pair.tau),
        same,
    )


def printable(text: str, encoding: str = "utf-8") -> str:
    """Without the control characters by which a model's text could steer the terminal, and encodable."""
    steering = {c for c in set(text) if c not in "\n\t" and unicodedata.category(c) == "Cc"}
    for c in steering:
        text = text.replace(c, "\N{REPLACEMENT CHARACTER}")
    return text.encode(encoding, "replace").decode(encoding)
