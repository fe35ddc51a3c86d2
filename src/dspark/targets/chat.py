"""Text to token ids and back, through the target's own tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import TokenizersBackend

from dspark.foundation.errors import UserError

Message = Mapping[str, str]
_MARK = "\u00a7"


class Chat:
    """The target's tokenizer; ``prompt_ids`` is the one place where messages become ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.raw = False
        """Whether messages are texts to go on with, without a template: what a base model can be asked."""

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the id of every token: with the same hash, ids mean the same to a drafter."""
        vocabulary = sorted(self._tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of ``messages`` as the template renders them, ready for the assistant's answer; raw ones are their texts,
        an empty line between two.
        """
        if self.raw:
            return self.encode("\n\n".join(message["content"] for message in messages))
        if not getattr(self._tokenizer, "chat_template", None):
            raise UserError(
                "the target has no chat template, as base models have none; ask it with plain text to go on with"
                " (--raw, or /v1/completions of a server), or use a chat model"
            )
        rendered = self._tokenizer.apply_chat_template(
            [dict(m) for m in messages], add_generation_prompt=True, tokenize=True
        )
        return list(rendered["input_ids"])

    def opening_ids(self, before: Sequence[Message] = ()) -> list[int]:
        """Ids of ``before`` and the template up to where a user's turn begins; UserError where it hides what users say.

        Not every template lets a user speak twice in a row.
        """
        messages = [*map(dict, before), {"role": "user", "content": _MARK}]
        rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        begun, found, _ = rendered.rpartition(_MARK)
        if not found:
            raise UserError(f"the target's chat template renders a user's turn as {rendered!r}, without what was said")
        return self.continuation_ids(begun)

    def encode(self, text: str) -> list[int]:
        """Ids of raw text, with whatever the tokenizer itself puts in front."""
        return list(self._tokenizer(text)["input_ids"])

    @property
    def end_id(self) -> int | None:
        """The id that ends an answer, as the tokenizer names it (a model may stop at others as well)."""
        found: int | None = self._tokenizer.eos_token_id
        return found

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of text in the middle of a conversation: nothing is put in front."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        text: str = self._decode(list(ids), skip_special_tokens=True)
        return text

    @cached_property
    def _decode(self) -> Any:
        """The tokenizer's ``decode``, or that of its backend where there is nothing around it that changes texts."""
        tokenizer, kind = self._tokenizer, type(self._tokenizer)
        own = (getattr(kind, "decode", None), getattr(kind, "_decode", None))
        if own != (TokenizersBackend.decode, TokenizersBackend._decode) or tokenizer.clean_up_tokenization_spaces:
            return tokenizer.decode
        return tokenizer.backend_tokenizer.decode

    def piece(self, token: int) -> str:
        """Text of one id by itself, a special one by its name."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text
