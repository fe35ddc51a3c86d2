"""Answers in the shapes of OpenAI's two APIs, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dspark.serving.answers import Piece, chat_logprobs, completion_logprobs
from dspark.serving.service import Job
from dspark.targets.chat import Chat


class Shape(Protocol):
    """How one of the APIs tells a job's answers."""

    object: str
    chunk_object: str

    def openings(self) -> Sequence[dict[str, Any]]:
        """Choices of chunks that come before any text."""
        ...

    def part(self, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""
        ...

    def choice(self, answer: Piece) -> dict[str, Any]:
        """The choice of a whole answer."""
        ...


class ChatShape:
    """``/v1/chat/completions``."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, job: Job, chat: Chat) -> None:
        self._job, self._chat = job, chat

    def openings(self) -> Sequence[dict[str, Any]]:
        """Whose turn it is, for each answer."""
        delta = {"role": "assistant", "content": ""}
        return [_choice(ticket.index, "delta", delta, None, None) for ticket in self._job.tickets]

    def part(self, piece: Piece) -> dict[str, Any]:
        return self._told(piece, "delta", {"content": piece.text} if piece.text else {})

    def choice(self, answer: Piece) -> dict[str, Any]:
        return self._told(answer, "message", {"role": "assistant", "content": answer.text, "refusal": None})

    def _told(self, piece: Piece, name: str, said: dict[str, Any]) -> dict[str, Any]:
        asked = self._job.asked
        logprobs = None if asked.alternatives is None else chat_logprobs(self._chat, piece.logprobs)
        return _choice(piece.index, name, said, logprobs, piece.finish) | _extensions(self._job, piece)


class CompletionShape:
    """``/v1/completions``."""

    object = chunk_object = "text_completion"

    def __init__(self, job: Job, chat: Chat) -> None:
        self._job, self._chat = job, chat
        self._offsets = dict.fromkeys(range(len(job.tickets)), 0)

    def openings(self) -> Sequence[dict[str, Any]]:
        """None."""
        return ()

    def part(self, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if self._job.asked.alternatives is not None:
            logprobs = completion_logprobs(self._chat, piece.logprobs, self._offsets[piece.index])
            self._offsets[piece.index] += sum(map(len, logprobs["tokens"]))
        return _choice(piece.index, "text", piece.text, logprobs, piece.finish) | _extensions(self._job, piece)

    def choice(self, answer: Piece) -> dict[str, Any]:
        return self.part(answer)


def usage(job: Job, written: int) -> dict[str, int]:
    """Tokens of prompts and of answers."""
    prompt = job.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _choice(index: int, name: str, said: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, name: said, "logprobs": logprobs, "finish_reason": finish}


def _extensions(job: Job, piece: Piece) -> dict[str, Any]:
    """Where they were asked for: vLLM's ids, and how an answer that has ended was drafted for."""
    ids: dict[str, Any] = {"token_ids": piece.ids} if job.asked.return_token_ids else {}
    return ids | ({"dspark": {"summary": piece.summary}} if piece.summary else {})
