"""Reads a page as a browser would: elements, attributes and text, and whether it stands alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "section",
    "aside",
    "article",
    "div",
    "p",
}
ALLOWED |= {"h1", "h2", "h3", "h4", "span", "small", "mark", "i", "dl", "dt", "dd", "svg", "path"}
ALLOWED |= {"table", "thead", "tbody", "tr", "th", "td"}
VOID = {"meta"}


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.marked: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "mark":
            self.marked[-1] += data


def check_alone(text: str, allowed: set[str]) -> Reader:
    """The page asks for nothing and runs nothing, and every element of it is one of those."""
    reader = Reader(text)
    assert reader.tags <= allowed, reader.tags - allowed
    names = {name for name, _ in reader.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "srcset", "action", "data", "background", "poster", "xlink:href"}
    assert all(value.startswith("#") for name, value in reader.attributes if name == "href")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "://" not in text
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes
    return reader
