"""What a page of the site asks other hosts for, which must be nothing: a hook of mkdocs (mkdocs.yml)."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from typing import Any

# Attributes that a browser follows by itself, unlike the href of an <a>.
LOADED = {"src", "srcset", "data", "poster"}
LOADING_LINKS = {"stylesheet", "preload", "preconnect", "icon", "manifest", "modulepreload", "dns-prefetch"}


class Loads(HTMLParser):
    """Collects the addresses on other hosts that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = LOADED | ({"href"} if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()) else set())
        self.elsewhere += [given[name] for name in names & given.keys() if given[name].startswith(("http", "//"))]


def loaded_from_elsewhere(page: str) -> list[str]:
    """Addresses on other hosts that this HTML would make a browser ask for."""
    loads = Loads()
    loads.feed(page)
    return loads.elsewhere


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn, which ends a strict build, of what a page loads from elsewhere."""
    for address in loaded_from_elsewhere(output):
        logging.getLogger("mkdocs.hooks.offline").warning("%s loads %s", page.file.src_uri, address)
    return output
