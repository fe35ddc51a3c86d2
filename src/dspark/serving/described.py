"""Answers as the OpenAPI description tells them. What is sent is built elsewhere; tests hold it against this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Sent(BaseModel):
    """All fields are known."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(Sent):
    """What was wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Sent):
    """Every error."""

    error: ErrorDetails


class Usage(Sent):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Summary(Sent):
    """How an answer was drafted for."""

    mode: str
    tau: float
    rounds: int
    drafted: int
    verified: int
    accepted: int
    verify_lengths: list[int]
    tokens: int
    seconds: float
    tok_s: float


class ToldOfChoice(Sent):
    """``dspark`` of each choice of an answer that asked for it."""

    summary: Summary


class Told(BaseModel):
    """``dspark`` at the top: the first choice's."""

    summary: Summary | None = None
    rounds: list[dict[str, Any]] = []


class ChatMessage(Sent):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """One answer."""

    index: int
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = []
    dspark: ToldOfChoice | None = None


class ChatChoice(Choice):
    """Of a chat."""

    message: ChatMessage


class TextChoice(Choice):
    """Of a text."""

    text: str


class Completion(BaseModel):
    """What both kinds have."""

    id: str
    created: int
    model: str
    usage: Usage
    dspark: Told | None = None


class ChatCompletion(Completion):
    """``/v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(Completion):
    """``/v1/completions``."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(Sent):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Sent):
    """``/v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Sent):
    """``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Sent):
    """``/detokenize``."""

    prompt: str


class State(Sent):
    """``/dspark/state``."""

    model: str
    mode: str
    modes: list[str]
    running: int
    waiting: int
    kv_cache_usage: float
    tok_s: float
    tau: float | None
    verify_length: float | None
    acceptance: float | None
    resting: bool
    step_ms: float | None
    uptime_s: float
