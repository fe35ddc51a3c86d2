"""The pages of the documentation, and the code and command lines on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "corpus/README.md",
    *sorted(str(each.relative_to(ROOT)) for each in ROOT.glob("docs/**/*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?dspark (.*)$", re.MULTILINE)


def text_of(document: str) -> str:
    """The page as it is written, by its path from the top of the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The fenced code of a language, in order."""
    return [code for found, code in _FENCE.findall(text_of(document)) if found == language]


def commands(document: str) -> Iterator[list[str]]:
    """The arguments of every line that runs ``dspark``, in fenced or indented code."""
    text = text_of(document).replace("\\\n", " ")
    indented = re.findall(r"^ {4}(\S.*)$", _FENCE.sub("", text), re.MULTILINE)
    fenced = [code for language, code in _FENCE.findall(text) if language == "bash"]
    for code in [*fenced, *indented]:
        for line in _COMMAND.findall(code):
            yield shlex.split(line, comments=True)
