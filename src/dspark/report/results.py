"""What was measured as one HTML page that stands alone, from the records that the verbs wrote.

Whatever comes from a record passes through ``literal``. The same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspark
from dspark.report.chart import LARGE, SMALL, chart, swatch
from dspark.report.document import contents, document, facts, section, tiles
from dspark.report.figures import Cell, Column, Figure, Section, Table
from dspark.report.markup import literal
from dspark.report.reading import Reading
from dspark.report.records.kind import Kind
from dspark.report.records.kinds import KINDS
from dspark.report.verdict import cautions_of, verdict_of

_SHEET = "report/page.css"
_ABSENT, _RECORDS = "Not on this page", "Records"


def sections(reading: Reading) -> list[Section]:
    """Those that there are records for, in the order of the page."""
    by_kind = [(kind, [each.value for each in reading.found if each.kind is kind]) for kind in KINDS]
    return [kind.section(values) for kind, values in by_kind if values]


def results_page(reading: Reading) -> str:
    """The HTML document."""
    shown = sections(reading)
    verdict = verdict_of(reading.found)
    header = (
        f'<header>\n<p class="kicker">dspark report</p>\n<h1>{literal(verdict.headline)}</h1>\n'
        f"<p>{literal(verdict.sentence)}</p>\n{tiles(verdict.tiles) if verdict.tiles else ''}\n</header>"
    )
    alarms = _aside("warning failure", [verdict.alarm] if verdict.alarm else [])
    alarms += _aside("warning", cautions_of(reading.found))
    titles = [*(each.title for each in shown), *([_ABSENT] if absent(reading) else []), _RECORDS]
    body = "\n".join(
        [header, alarms, contents(titles), *map(_section, shown), _absent(reading), _records(reading)],
    )
    return document(f"dspark report: {verdict.headline}", body, _SHEET)


def _aside(kind: str, notes: Sequence[str]) -> str:
    paragraphs = "".join(f"<p>{literal(note)}</p>" for note in notes)
    return f'<aside class="{kind}">{paragraphs}</aside>' if notes else ""


def absent(reading: Reading) -> list[Kind[Any]]:
    """Kinds that there are no records of."""
    return [kind for kind in KINDS if not any(each.kind is kind for each in reading.found)]


def _section(shown: Section) -> str:
    return section(shown.title, "\n".join(_figure(figure, shown.names) for figure in shown.figures))


def _figure(figure: Figure, names: Sequence[str]) -> str:
    """Drawn, with its table behind a fold; a table that nothing is drawn of has none."""
    table = _table(figure.table)
    if figure.panels:
        used = {line.name for panel in figure.panels for line in panel.lines}
        legend = "".join(f"<li>{swatch(i)}{literal(name)}</li>" for i, name in enumerate(names) if name in used)
        paper, size = (SMALL, "panels small") if figure.small else (LARGE, "panels")
        panels = "".join(
            "<div>"
            + (f"<h4>{literal(panel.title)}</h4>" if panel.title else "")
            + chart(panel, names, paper)
            + "</div>"
            for panel in figure.panels
        )
        shown = f'<ul class="lines">{legend}</ul>\n<div class="{size}">{panels}</div>'
        fold = '<details open class="whole">' if figure.open else "<details>"
        table = f"{shown}\n{fold}<summary>The figures</summary>{table}</details>"
    return (
        f'<figure id="{literal(figure.id)}">\n<h3>{literal(figure.title)}</h3>\n'
        f"<figcaption>{literal(figure.caption)}</figcaption>\n{table}\n</figure>"
    )


def _table(table: Table) -> str:
    names = [literal(column.name) for column in table.columns]
    head = "".join(f'<th scope="col" class="of">{name}</th>' for name in names[: table.heads])
    head += "".join(f'<th scope="col">{name}</th>' for name in names[table.heads :])
    body = "".join(f"<tr>{''.join(_cells(table, row))}</tr>" for row in table.rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(table: Table, row: Sequence[Cell]) -> list[str]:
    cells = [_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)]
    heads = [f'<th scope="row">{cell}</th>' for cell in cells[: table.heads]]
    return heads + [f"<td>{cell}</td>" for cell in cells[table.heads :]]


def _cell(column: Column, cell: Cell) -> str:
    text, interval = column.shown(cell)
    return literal(text) + (f" <small>{literal(interval)}</small>" if interval else "")


def _absent(reading: Reading) -> str:
    lines = "".join(
        f"<li>{literal(kind.brings)}: <code>{literal(kind.command)}</code></li>" for kind in absent(reading)
    )
    return section(_ABSENT, f'<ul class="absent">{lines}</ul>') if lines else ""


def _records(reading: Reading) -> str:
    """What every figure was made from."""
    body = ""
    for each in reading.found:
        known = {"kind": each.kind.name, "SHA-256": f"{each.record.digest}..."} | dict(each.facts)
        body += f"<article>\n<h3>{literal(each.record.name)}</h3>\n{facts(known)}\n</article>\n"
    left = f"Left out, no records: {', '.join(reading.left_out)}. " if reading.left_out else ""
    made = f'<p class="note">{literal(left)}Page made by dspark {dspark.__version__}.</p>'
    return section(_RECORDS, f'<div class="records">{body}</div>\n{made}')
