"""Conversations under way: which turn comes next, and what is asked for it.

A later turn is asked with the earlier answers as a client would send them: as text. What was rendered and sampled for
an earlier turn is never rendered again; its row stands as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dspark.data.prompts import Prompt
from dspark.data.responses import Response
from dspark.decoding.request import Request
from dspark.speculation.sampling import Sampling


class Voice(Protocol):
    """Text to ids and back, as the target's tokenizer and template do it."""

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of messages, ready for the answer."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        ...


@dataclass
class Conversation:
    """A prompt and the answers it has so far, as text."""

    prompt: Prompt
    answers: list[str] = field(default_factory=list)

    @property
    def turn(self) -> int:
        """The turn that has no answer yet; as many as there are turns when all have."""
        return len(self.answers)

    @property
    def finished(self) -> bool:
        """Whether every turn has its answer."""
        return self.turn >= len(self.prompt.turns)

    def messages(self) -> list[dict[str, str]]:
        """System prompt, turns and answers up to the turn to be answered."""
        found = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        for index, text in enumerate(self.prompt.turns[: self.turn + 1]):
            found.append({"role": "user", "content": text})
            if index < self.turn:
                found.append({"role": "assistant", "content": self.answers[index]})
        return found

    def request(self, voice: Voice, sampling: Sampling, seed: int, max_tokens: int) -> Request:
        """The next turn; its draws are seeded by ``seed``, the prompt's id and the turn."""
        name = f"{seed}/{self.prompt.id}" + (f"/{self.turn}" if self.turn else "")
        own_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        return Request(self.prompt.id, voice.prompt_ids(self.messages()), sampling, own_seed, max_tokens)


def continued(prompt: Prompt, rows: Mapping[int, Response], voice: Voice) -> Conversation:
    """The conversation of ``prompt`` as far as ``rows`` (by turn) answer it without a gap."""
    conversation = Conversation(prompt)
    while (row := rows.get(conversation.turn)) is not None and not conversation.finished:
        conversation.answers.append(voice.decode(row.output_ids))
    return conversation
