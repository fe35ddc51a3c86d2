"""Colouring: pieces joined are the text, whatever the tokens hold."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from dspark.report.spans import Span, spans

Rounds = list[tuple[list[int], int]]


def decode_bytes(ids: Sequence[int]) -> str:
    """Token 0 is a special token without text; the others are bytes."""
    return bytes(token for token in ids if token).decode("utf-8", errors="replace")


@st.composite
def cut_texts(draw: st.DrawFn) -> Rounds:
    data = draw(st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=30)))
    left, rounds = list(data), []
    while left:
        accepted = draw(st.integers(0, 5))
        piece, left = left[: accepted + 1], left[accepted + 1 :]
        rounds.append((piece, min(accepted, len(piece))))
    return rounds


@given(cut_texts())
def test_joined_spans_are_the_text(rounds: Rounds) -> None:
    found = spans(decode_bytes, rounds)
    assert "".join(span.text for span in found) == decode_bytes([token for ids, _ in rounds for token in ids])
    assert all(span.text for span in found)
    assert [span.round for span in found] == sorted(span.round for span in found)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40), st.data())
def test_where_tokens_are_characters_each_keeps_its_own_fate(text: str, data: st.DataObject) -> None:
    rounds: Rounds = []
    fates = ""
    left = list(text.encode())
    while left:
        accepted = min(data.draw(st.integers(0, 4)), len(left))
        piece, left = left[: accepted + 1], left[accepted + 1 :]
        rounds.append((piece, accepted))
        fates += "d" * accepted + "t" * (len(piece) - accepted)
    found = "".join(("d" if span.accepted else "t") * len(span.text) for span in spans(decode_bytes, rounds))
    assert found == fates


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    first, second = "ü".encode()
    found = spans(decode_bytes, [([ord("a")], 0), ([ord("b"), first, second], 2), ([ord("c"), 0], 1)])
    assert found == (Span("a", False, 0), Span("b", True, 1), Span("ü", False, 1), Span("c", True, 2))


def test_a_decoder_that_changes_its_mind_loses_nothing() -> None:
    def decode(ids: Sequence[int]) -> str:
        text = "".join(map(chr, ids))
        return text.replace(" .", ".")  # as clean-up of spaces does

    rounds: Rounds = [([ord("a")], 0), ([ord(" "), ord("."), ord("b")], 2)]
    assert "".join(span.text for span in spans(decode, rounds)) == "a.b"
