"""The documents that name files are held to the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`")
LINKED = re.compile(r"\]\(((?!https?://)[^)#]+)\)")


DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [name for name in NAMED.findall(text) if not (ROOT / name).exists()]
    missing += [link for link in LINKED.findall(text) if not ((ROOT / document).parent / link).exists()]
    assert not missing


def test_the_path_of_a_token_passes_through_every_room_that_handles_tokens() -> None:
    named = set(NAMED.findall((ROOT / "docs/token_path.md").read_text()))
    rooms = {Path(name).parts[2] for name in named}
    assert rooms >= {"cli", "targets", "decoding", "speculation", "drafters", "nn", "data", "training"}
