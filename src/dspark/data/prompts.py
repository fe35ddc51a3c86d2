"""Prompts: JSONL rows of turns, ShareGPT conversations or OpenAI messages, read into one form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from dspark.foundation.errors import UserError
from dspark.foundation.records import read_jsonl

_USER_ROLES = {"human", "user"}


@dataclass(frozen=True)
class Prompt:
    """The user's side of a conversation; ``turns`` holds at least one text."""

    id: str
    turns: tuple[str, ...]
    system: str | None = None

    def first_messages(self) -> list[dict[str, str]]:
        """Messages up to the first answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.turns[0]}]


def read_prompts(paths: Iterable[Path]) -> list[Prompt]:
    """All prompts of ``paths`` in order; raises UserError for a bad row (file and line) or an id that occurs twice."""
    return list(chain.from_iterable(_read_files(paths)))


def read_in_turn(paths: Iterable[Path], limit: int | None = None) -> list[Prompt]:
    """As ``read_prompts``, the files taking turns, cut at ``limit``: a cut takes as much of each file as it can."""
    turns = zip_longest(*_read_files(paths))
    return list(islice((prompt for turn in turns for prompt in turn if prompt is not None), limit))


def _read_files(paths: Iterable[Path]) -> list[list[Prompt]]:
    seen: dict[str, str] = {}
    return [parse_prompts(((f"{path}, line {line}", row) for line, row in read_jsonl(path)), seen) for path in paths]


def parse_prompts(rows: Iterable[tuple[str, dict[str, Any]]], seen: dict[str, str] | None = None) -> list[Prompt]:
    """Rows, each behind the name of its place, as prompts; ``seen`` holds places by id and is added to.

    Raises UserError, naming the place, for a bad row or an id that was seen before.
    """
    seen = {} if seen is None else seen
    prompts = []
    for where, row in rows:
        prompt = _parse(row, where)
        if prompt.id in seen:
            raise UserError(f"{where}: the id {prompt.id!r} was already used at {seen[prompt.id]}; ids must be unique")
        seen[prompt.id] = where
        prompts.append(prompt)
    return prompts


def _parse(row: dict[str, Any], where: str) -> Prompt:
    turns, system = _turns(row, where)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UserError(f"{where}: a prompt needs at least one user turn, each a text that is not empty")
    identifier = row.get("id")
    if identifier is None:
        identifier = hashlib.sha256("\0".join(turns).encode()).hexdigest()[:16]
    return Prompt(str(identifier), tuple(turns), system)


def _turns(row: dict[str, Any], where: str) -> tuple[list[Any], str | None]:
    if isinstance(row.get("turns"), list):
        return row["turns"], None
    for key, role_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
        if isinstance(row.get(key), list):
            messages = row[key]
            if not all(isinstance(m, dict) and role_key in m and text_key in m for m in messages):
                raise UserError(f"{where}: each entry of {key!r} needs {role_key!r} and {text_key!r}")
            turns = [m[text_key] for m in messages if m[role_key] in _USER_ROLES]
            system = next((m[text_key] for m in messages if m[role_key] == "system"), None)
            if system is not None and not isinstance(system, str):
                raise UserError(f"{where}: the system prompt is a {type(system).__name__}, expected a text")
            return turns, system
    found = ", ".join(sorted(row)) or "nothing"
    raise UserError(f"{where}: a prompt row needs 'turns', 'messages' or 'conversations'; found {found}")


def held_out(identifier: str, percent: int = 5) -> bool:
    """Whether an id belongs to the fixed development split: decided by its hash alone, the same for ever."""
    return int(hashlib.sha256(identifier.encode()).hexdigest()[:8], 16) % 100 < percent
