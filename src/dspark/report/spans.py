"""A speculative text cut into what the drafter proposed and what the target wrote itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# What decoders give for bytes that are no character (yet).
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Span:
    """A piece of text of one round: accepted drafts, or the target's own token."""

    text: str
    accepted: bool
    round: int


def spans(decode: Callable[[Sequence[int]], str], rounds: Iterable[tuple[Sequence[int], int]]) -> tuple[Span, ...]:
    """Spans of an output; their texts joined are exactly ``decode`` of all its ids.

    ``rounds``: (tokens, how many of the first of them are accepted drafts), from round 0 on. A token may hold a part
    of a character, and how it reads may depend on what follows: new text belongs to the token that completed it.
    """
    tokens = [
        (token, place < accepted, number)
        for number, (ids, accepted) in enumerate(rounds)
        for place, token in enumerate(ids)
    ]
    ids = [token for token, _, _ in tokens]
    whole = decode(ids)
    found: list[Span] = []
    end = 0
    for count, (_, accepted, number) in enumerate(tokens, start=1):
        prefix = whole if count == len(tokens) else decode(ids[:count])
        settled = count == len(tokens) or (whole.startswith(prefix) and not prefix.endswith(_UNFINISHED))
        if not settled or len(prefix) <= end:
            continue
        piece, end = whole[end : len(prefix)], len(prefix)
        if found and (found[-1].accepted, found[-1].round) == (accepted, number):
            piece = found.pop().text + piece
        found.append(Span(piece, accepted, number))
    return tuple(found)
