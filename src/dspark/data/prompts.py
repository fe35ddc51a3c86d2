"""Prompts: JSONL rows of turns, ShareGPT conversations or OpenAI messages, read into one form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for path in paths:
        for line, row in read_jsonl(path):
            where = f"{path}, line {line}"
            prompt = _parse(row, where)
            if prompt.id in seen:
                raise UserError(
                    f"{where}: the id {prompt.id!r} was already used at {seen[prompt.id]}; ids must be unique"
                )
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
            return turns, system
    found = ", ".join(sorted(row)) or "nothing"
    raise UserError(f"{where}: a prompt row needs 'turns', 'messages' or 'conversations'; found {found}")


def held_out(identifier: str, percent: int = 5) -> bool:
    """Whether an id belongs to the fixed development split: decided by its hash alone, the same for ever."""
    return int(hashlib.sha256(identifier.encode()).hexdigest()[:8], 16) % 100 < percent


def without_overlap(prompts: Iterable[Prompt], against: Iterable[Prompt], gram: int = 13) -> Iterator[Prompt]:
    """Prompts that share neither their normalised text nor any run of ``gram`` words with a prompt of ``against``."""
    texts: set[str] = set()
    grams: set[tuple[str, ...]] = set()
    for other in against:
        for turn in other.turns:
            words = _words(turn)
            texts.add(" ".join(words))
            grams.update(_grams(words, gram))
    for prompt in prompts:
        turns = [_words(turn) for turn in prompt.turns]
        if all(" ".join(words) not in texts and grams.isdisjoint(_grams(words, gram)) for words in turns):
            yield prompt


def _words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def _grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
