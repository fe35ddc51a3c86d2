"""What clients may ask: OpenAI's requests, strict about names and types, and what vLLM's and ours add to them.

A field that would change the answer and can't be honoured is an error, never ignored; one that is null is absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Values of fields that this server lacks which ask for nothing.
_NEUTRAL: dict[str, Any] = {
    "response_format": {"type": "text"},
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "best_of": 1,
    "echo": False,
    "suffix": "",
}
MOST_STOPS, MOST_BIASES, MOST_TOP_LOGPROBS, MOST_ANSWERS = 4, 1024, 20, 128
_LONGEST_STOP = 256


def _whole_characters(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a surrogate pair; send whole characters")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[Text, Field(min_length=1, max_length=_LONGEST_STOP)]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]


class Strict(BaseModel):
    """Unknown fields and wrong types are errors; null fields are absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: value
            for name, value in values.items()
            if value is not None and not (name in _NEUTRAL and value == _NEUTRAL[name])
        }


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation; "developer" is another word for "system"."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def text(self) -> str:
        """All pieces together."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """``include_usage``: a last chunk says what was used; ``continuous_usage_stats``: every chunk does."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SpeculativeOptions(Strict):
    """How this request is drafted for, and what is told of it: a ``summary`` at the end, a ``trace`` of its rounds."""

    mode: Annotated[str, Field(max_length=32)] | None = None
    draft_tokens: Annotated[int, Field(ge=1, le=64)] | None = None
    summary: bool = False
    trace: bool = False


class Asked(Strict):
    """What both kinds of requests have."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    max_tokens: Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, lt=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[Id] = Field([], max_length=64)
    min_tokens: int = Field(0, ge=0, lt=2**31)
    ignore_eos: bool = False
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=MOST_BIASES
    )
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    stream: bool = False
    stream_options: StreamOptions | None = None
    speculative: Annotated[str, Field(max_length=32)] | SpeculativeOptions | None = None
    return_token_ids: bool = False
    # Who asks and why: no business of the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def speculation(self) -> SpeculativeOptions:
        """The long form of ``speculative``."""
        asked = self.speculative
        if isinstance(asked, SpeculativeOptions):
            return asked
        return SpeculativeOptions(mode=asked)

    @property
    def alternatives(self) -> int | None:
        """How many alternatives of each token are told; None: no log-probabilities."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _options_of_streams(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


class ChatRequest(Asked):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _pairs_of_fields(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class CompletionRequest(Asked):
    """``POST /v1/completions``: texts, or ids as they are."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS)]
        | Annotated[list[Id], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[Id], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_ANSWERS),
        ]
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TokenizeRequest(Strict):
    """``POST /tokenize``: a text, or messages as the template renders them."""

    model: str | None = None
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[Id]
