"""Answers in one small file, to keep: a line of JSON about the rows, then all token ids as 2- or 4-byte numbers, xz.

A million answer tokens of a small model take 0.7 MB, a thirteenth of their JSONL. Messages are left out: ids hold them.
"""

from __future__ import annotations

import json
import lzma
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dspark.data.responses import Response, parse_response, read_responses
from dspark.foundation.artifacts import write_atomic
from dspark.foundation.errors import UserError

SUFFIX = ".xz"
_FORMAT = "dspark-answers"
_CODES = {2: "H", 4: "I"}  # bytes of an id, and array's name of it
_ROW = ("id", "turn", "finish_reason", "model", "sampling", "prompt", "output")


def write_archive(path: Path, responses: Sequence[Response]) -> None:
    """Write ``responses`` in their order, whole or not at all."""
    models, samplings = _Numbers(), _Numbers()
    rows = [
        (
            r.id,
            r.turn,
            r.finish_reason,
            models.of(r.model),
            samplings.of(json.dumps(r.sampling, sort_keys=True)),
            len(r.prompt_ids),
            len(r.output_ids),
        )
        for r in responses
    ]
    ids = [token for r in responses for token in (*r.prompt_ids, *r.output_ids)]
    size = 2 if max(ids, default=0) < 1 << 16 else 4
    header: dict[str, Any] = {"format": _FORMAT, "version": 1, "bytes": size, "fields": _ROW, "rows": rows}
    header |= {"models": models.values, "samplings": [json.loads(text) for text in samplings.values]}
    numbers = array(_CODES[size], ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    content = json.dumps(header, separators=(",", ":")).encode() + b"\n" + numbers.tobytes()
    write_atomic(path, lambda temporary: _write(temporary, content))


def read_archive(path: Path) -> Iterator[Response]:
    """The answers of a file that ``write_archive`` wrote; UserError where it is not one, or not whole."""
    try:
        with lzma.open(path) as file:
            head, content = file.readline(), file.read()
        header = json.loads(head)
        if header["format"] != _FORMAT or header["version"] != 1 or tuple(header["fields"]) != _ROW:
            raise ValueError(f"it says {header['format']!r}, version {header['version']}")
        numbers = array(_CODES[header["bytes"]], content)
        rows = [dict(zip(_ROW, row, strict=True)) for row in header["rows"]]
        for row in rows:
            if min(row["prompt"], row["output"]) < 1 or min(row["model"], row["sampling"]) < 0:
                raise ValueError(f"it has a row {list(row.values())}")
            row |= {"model": header["models"][row["model"]], "sampling": header["samplings"][row["sampling"]]}
        if sum(row["prompt"] + row["output"] for row in rows) != len(numbers):
            raise ValueError(f"its rows do not hold the {len(numbers)} ids that it has")
    except (OSError, EOFError, lzma.LZMAError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: is not an archive of answers, or a damaged one ({error}); get it again") from error
    if sys.byteorder == "big":
        numbers.byteswap()
    ids = iter(numbers)
    for number, row in enumerate(rows, start=1):
        prompt, output = (list(islice(ids, row.pop(name))) for name in ("prompt", "output"))
        row |= {"messages": [], "prompt_ids": prompt, "output_ids": output}
        yield parse_response(row, f"{path}, row {number}")


def read_answers(path: Path) -> Iterator[Response]:
    """Answers of an archive (by its suffix, .xz), or of a JSONL file."""
    return read_archive(path) if path.suffix == SUFFIX else read_responses(path)


class _Numbers:
    """Texts by the order of their first coming."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self._known.setdefault(text, len(self._known))

    @property
    def values(self) -> list[str]:
        return list(self._known)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
