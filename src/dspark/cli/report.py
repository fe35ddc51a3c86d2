"""`dspark report`: what was measured, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dspark.cli.options import JsonOption, writable

PAGE = "report.html"


def _page(folder: Path) -> Path:
    writable("--out")(folder / PAGE)
    return folder


RunsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="Files that verbs wrote with --json, folders of them, runs of `train`."),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", callback=_page, help=f"Folder of the page ({PAGE}) that is written.")
]


def report(runs: RunsArgument, out: OutOption, json: JsonOption = None) -> None:
    """Put what was measured on one page.

    Reads records alone: the --json files of eval, bench, calibrate and profile, runs of train, and comparisons of
    drafters. Any of them will do. The page needs no network and no script.
    """
    from dspark.foundation.artifacts import write_json
    from dspark.report.document import write_document
    from dspark.report.reading import read
    from dspark.report.results import absent, results_page, sections

    reading, page = read(runs), out / PAGE
    write_document(page, results_page(reading))
    figures = [figure for section in sections(reading) for figure in section.figures]
    for each in reading.found:
        print(f"{each.kind.name}: {each.record.name}")
    for name in reading.left_out:
        print(f"left out, no record: {name}")
    for kind in absent(reading):
        print(f"not on the page: {kind.brings}; to have it: {kind.command}")
    print(f"{len(figures)} figures: {page}")
    if json is not None:
        records = [{"file": each.record.name, "kind": each.kind.name} for each in reading.found]
        figures_of = [figure.asdict() for figure in figures]
        write_json(json, {"page": str(page), "records": records, "figures": figures_of})
