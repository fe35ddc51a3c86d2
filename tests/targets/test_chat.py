"""Where a chat template lets the user begin."""

from __future__ import annotations

from typing import Any

import pytest

from dspark.foundation.errors import UserError
from dspark.targets.chat import Chat
from tiny import TinyTokenizer


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


def test_a_template_that_hides_the_turn_is_refused() -> None:
    with pytest.raises(UserError, match="'nothing to see', without what was said"):
        Chat(Rendering("nothing to see")).opening_ids()
