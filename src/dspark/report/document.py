"""A page that stands alone: no script, no network, nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path

from dspark.foundation.artifacts import write_atomic
from dspark.report.markup import literal

# The page asks for nothing and runs nothing, whatever a text on it says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, body: str, *sheets: str) -> str:
    """The HTML document with the demo's style sheet, and others of assets/ after it."""
    texts = ((files("dspark") / "assets" / each).read_text(encoding="utf-8") for each in ("demo/page.css", *sheets))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{literal(title)}</title>\n<style>\n{''.join(texts)}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of the page under its title, by which ``contents`` finds it."""
    return f'<section id="{_slug(title)}">\n<h2>{literal(title)}</h2>\n{body}\n</section>'


def contents(titles: Iterable[str]) -> str:
    """Links to the sections with these titles."""
    links = "".join(f'<li><a href="#{_slug(title)}">{literal(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _slug(title: str) -> str:
    return "section-" + "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def tiles(figures: Mapping[str, str]) -> str:
    """Large figures by what they are."""
    cells = "".join(f"<div><dt>{literal(label)}</dt><dd>{literal(each)}</dd></div>" for label, each in figures.items())
    return f'<dl class="tiles">{cells}</dl>'


def facts(values: Mapping[str, str]) -> str:
    """Names and what they are, a line each."""
    rows = "".join(f"<div><dt>{literal(key)}</dt><dd>{literal(value)}</dd></div>" for key, value in values.items())
    return f'<dl class="facts">{rows}</dl>'


def write_document(path: Path, text: str) -> None:
    """Write the page whole or not at all."""
    write_atomic(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
