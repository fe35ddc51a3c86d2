"""Whatever a page names or links to is there, and every page is to be found from the navigation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pages import DOCUMENTS, ROOT, text_of

NAMED = re.compile(r"`((?:src|tests|docs|benchmarks|corpus)/[\w./-]+)`")
LINKED = re.compile(r"\]\(((?!https?://)[^)#]*)(?:#([^)]*))?\)")


def anchors(page: Path) -> set[str]:
    """Ids of the headings of a page, as the site makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in headings}


def broken(document: str) -> Iterator[str]:
    """Files that are named and links that lead nowhere."""
    text = text_of(document)
    yield from (name for name in NAMED.findall(text) if not (ROOT / name).exists())
    for link, anchor in LINKED.findall(text):
        page = (ROOT / document).parent / link if link else ROOT / document
        if not page.exists() or (anchor and anchor not in anchors(page)):
            yield f"{link}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_link_of_a_document_exists(document: str) -> None:
    assert not list(broken(document))


def test_control_what_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "`src/dspark/none.py`, `src/dspark`, [a](none.md), [b](ideas.md#none), [c](ideas.md#why-it-is-exact)"
    monkeypatch.setitem(globals(), "text_of", lambda document: text)
    assert list(broken("docs/index.md")) == ["src/dspark/none.py", "none.md#", "ideas.md#none"]


def test_every_page_is_in_the_navigation() -> None:
    def listed(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from listed(each)

    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert set(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])) == pages


def test_the_path_of_a_token_passes_through_every_room_that_handles_tokens() -> None:
    rooms = {Path(name).parts[2] for name in NAMED.findall(text_of("docs/token_path.md"))}
    assert rooms >= {"cli", "targets", "decoding", "speculation", "drafters", "nn", "data", "training"}


def test_every_metric_that_is_explained_is_counted() -> None:
    counted = text_of("src/dspark/serving/metrics.py")
    named = set(re.findall(r"`((?:dspark|vllm):\w+)`", text_of("docs/tuning.md")))
    assert len(named) > 10
    assert not {name for name in named if f'"{name.removesuffix("_total")}"' not in counted}
