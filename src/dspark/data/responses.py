"""Answers of the target, one row an assistant turn, token ids exactly as sampled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from dspark.foundation.errors import UserError
from dspark.foundation.records import read_jsonl
from dspark.speculation.acceptance import Finish


@dataclass(frozen=True)
class Response:
    """One answer: ``prompt_ids`` as rendered for that turn, ``output_ids`` as sampled (with the stop id, if it
    came).
    """

    id: str
    turn: int
    messages: list[dict[str, str]]
    prompt_ids: list[int]
    output_ids: list[int]
    finish_reason: Finish
    model: str
    sampling: dict[str, float]

    def row(self) -> dict[str, Any]:
        """The JSONL row."""
        return asdict(self)


def read_responses(path: Path) -> Iterator[Response]:
    """Rows of ``path``; raises UserError naming the line that lacks a field or holds something else than token ids."""
    for line, row in read_jsonl(path):
        yield parse_response(row, f"{path}, line {line}")


def parse_response(row: dict[str, Any], where: str) -> Response:
    """One row as a Response; ``where`` names it in errors."""
    fields = Response.__dataclass_fields__
    missing = [name for name in fields if name not in row]
    if missing:
        raise UserError(f"{where}: a response row lacks {', '.join(missing)}; write it with `dspark data regenerate`")
    for name in ("prompt_ids", "output_ids"):
        ids = row[name]
        if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise UserError(f"{where}: {name} must be a list of token ids that is not empty")
    if row["finish_reason"] not in get_args(Finish):
        raise UserError(
            f"{where}: finish_reason is {row['finish_reason']!r}, expected one of {', '.join(get_args(Finish))}"
        )
    return Response(**{name: row[name] for name in fields})
