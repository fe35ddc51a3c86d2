"""Where a chat template lets the user begin."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dspark.foundation.errors import UserError
from dspark.targets.chat import Chat
from tiny import TinyTokenizer
from tiny_pair import make_tokenizer


class Rendering(TinyTokenizer):
    """A tokenizer whose template is a format string."""

    def __init__(self, template: str) -> None:
        self.template = template

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> Any:
        return self.template.format(messages[0]["content"])


def test_the_opening_is_what_stands_before_the_first_turn() -> None:
    tokenizer = Rendering("be kind; user: {} answer:")
    assert Chat(tokenizer).opening_ids() == tokenizer("be kind; user: ")["input_ids"]


def test_an_opening_may_come_after_other_turns() -> None:
    class Turns(TinyTokenizer):
        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> Any:
            return "".join(f"[{m['role']}] {m['content']}\n" for m in messages)

    before = [{"role": "user", "content": "who?"}, {"role": "user", "content": "and why?"}]
    expected = Turns()("[user] who?\n[user] and why?\n[user] ")["input_ids"]
    assert Chat(Turns()).opening_ids(before) == expected


def test_raw_messages_are_texts_without_a_template() -> None:
    tokenizer = make_tokenizer()
    messages = [{"role": "user", "content": text} for text in ("abc", "d")]
    chat, tokenizer.chat_template = Chat(tokenizer), None
    with pytest.raises(UserError, match="no chat template.*--raw"):
        chat.prompt_ids(messages)
    chat.raw = True
    assert chat.prompt_ids(messages[:1]) == chat.encode("abc")
    assert chat.decode(chat.prompt_ids(messages)) == "abc\n\nd"


def test_a_template_that_hides_the_turn_is_refused() -> None:
    with pytest.raises(UserError, match="'nothing to see', without what was said"):
        Chat(Rendering("nothing to see")).opening_ids()


def test_ids_read_as_the_tokenizer_reads_them() -> None:
    tokenizer, chance = make_tokenizer(), random.Random(3)
    chat = Chat(tokenizer)
    for size in range(40):
        ids = [chance.randrange(len(tokenizer)) for _ in range(size)]
        assert chat.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert chat.decode(tokenizer.all_special_ids) == ""


def test_a_tokenizer_that_reads_ids_its_own_way_is_asked_itself() -> None:
    tokenizer = make_tokenizer()

    class Shouting(type(tokenizer)):  # type: ignore[misc]
        def _decode(self, *arguments: Any, **more: Any) -> str:
            return str(super()._decode(*arguments, **more)).upper()

    ids = tokenizer("quiet")["input_ids"]
    assert Chat(tokenizer).decode(ids) == "quiet"
    tokenizer.__class__ = Shouting
    assert Chat(tokenizer).decode(ids) == "QUIET"
