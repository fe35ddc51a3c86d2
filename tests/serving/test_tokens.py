"""Text that comes in pieces: joined it is the whole, no piece holds half a character or a part of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.serving.tokens import UNFINISHED, AnswerText, StopGuard, TextStream, pieces
from dspark.targets.chat import Chat
from tiny_pair import make_tokenizer

CHAT = Chat(make_tokenizer())
SPECIAL = range(5)
IDS = st.lists(st.integers(0, 261), max_size=60)
TEXT = st.text(alphabet="abé€😀 ", max_size=40)


def cut(ids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Rounds of these sizes, the last one as long as need be."""
    rounds, at = [], 0
    for size in sizes:
        rounds.append(list(ids[at : at + size]))
        at += size
    return [each for each in [*rounds, list(ids[at:])] if each]


@given(ids=IDS, sizes=st.lists(st.integers(1, 5), max_size=30))
def test_any_bytes_in_any_rounds_are_the_whole_text(ids: list[int], sizes: list[int]) -> None:
    stream = TextStream(CHAT.decode)
    text = "".join(stream.push(each) for each in cut(ids, sizes)) + stream.finish()
    assert text == CHAT.decode(ids)


@given(text=TEXT, sizes=st.lists(st.integers(1, 5), max_size=60))
def test_no_piece_of_a_text_holds_half_a_character(text: str, sizes: list[int]) -> None:
    ids, stream = CHAT.encode(text), TextStream(CHAT.decode)
    shown = [stream.push(each) for each in cut(ids, sizes)]
    assert not any(UNFINISHED in each for each in shown)
    assert "".join(shown) == text


@pytest.mark.parametrize("byte", [0x80, 0xE2, 0x61])
def test_a_token_costs_the_same_however_long_the_answer(byte: int) -> None:
    token = {CHAT.encode("a")[0] if byte == 0x61 else next(i for i in range(5, 261) if is_byte(i, byte))}.pop()
    decoded: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return CHAT.decode(ids)

    stream = TextStream(decode)
    text = "".join(stream.push([token]) for _ in range(400)) + stream.finish()
    assert text == CHAT.decode([token] * 400)
    assert max(decoded) <= 64


def is_byte(token: int, byte: int) -> bool:
    """Whether it stands for that byte alone."""
    name = make_tokenizer().convert_ids_to_tokens(token)
    mapping = byte + (0x100 - 0x7F + 0x21 if 0x7F <= byte <= 0xA0 else 0)
    return len(name) == 1 and ord(name) == mapping


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 4), max_size=30),
)
def test_an_answer_stops_in_front_of_the_first_stop_text(text: str, stops: list[str], sizes: list[int]) -> None:
    """As the engine ends it: with the token that completes one."""
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    text = text[: ends[0]] if ends else text
    whole = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    answer = AnswerText(lambda ids: "".join(map(chr, ids)), stops)
    rounds = cut([ord(each) for each in text], sizes)
    shown = [answer.push(each, number == len(rounds) - 1) for number, each in enumerate(rounds)]
    assert "".join(shown) == text[:whole]


def test_what_may_begin_a_stop_text_waits_and_comes_back() -> None:
    guard = StopGuard(["END"])
    assert [guard.push(each) for each in ("one E", "N", "one", " EN")] == ["one ", "", "ENone", " "]
    assert guard.finish("D and more") == ""


@given(text=TEXT)
def test_pieces_of_ids_are_their_text(text: str) -> None:
    ids = CHAT.encode(text)
    assert "".join(pieces(CHAT.decode, CHAT.encode("é"), ids)) == text
