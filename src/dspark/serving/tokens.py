"""Text of a growing list of token ids, piece by piece: never half a character, nothing of a stop text.

What a client reads in pieces is what it would have read at once: both are what these streams give, joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[Sequence[int]], str]

# A character has at most four bytes, so at most three tokens wait for its last one. Bytes that are no text at all look
# unfinished for ever: behind so many ids only what may still change is held back, and so many are decoded again.
_MOST_WAITING, CONTEXT = 16, 8
_LONGEST_UNFINISHED = 3


class TextStream:
    """Turns token ids into text as they come, at a bounded cost a token.

    A token may hold a part of a character, and how a token reads may depend on its neighbours. So some ids whose text
    is out, the piece before at least, are decoded again with the new ones, and text is held back while it ends in an
    unfinished character.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # those that are decoded again
        self._known = 0  # of these, whose text is out
        self._shown = 0  # characters of their text that are out

    def push(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` complete; may be empty."""
        self._ids += ids
        text = self._decode(self._ids)
        if not text.endswith(UNFINISHED):
            return self._complete(text)
        if len(self._ids) - self._known <= _MOST_WAITING:
            return ""
        return self._hopeless(text)

    def finish(self) -> str:
        """What was held back, as it stands."""
        return self._complete(self._decode(self._ids))

    def _complete(self, text: str) -> str:
        new = text[self._shown :]
        if new and len(self._ids) > CONTEXT:
            self._ids = self._ids[self._known :]
            text = self._decode(self._ids)
        if new:
            self._known, self._shown = len(self._ids), len(text)
        return new

    def _hopeless(self, text: str) -> str:
        """Show all but what further bytes could still complete, where the last ids read alone as they read here."""
        held = min(_LONGEST_UNFINISHED, len(text) - len(text.rstrip(UNFINISHED)))
        last = self._decode(self._ids[-CONTEXT:])
        if len(last) <= 2 * _LONGEST_UNFINISHED or not text.endswith(last[_LONGEST_UNFINISHED:]):
            return ""
        new = text[self._shown : len(text) - held]
        self._ids = self._ids[-CONTEXT:]
        self._known, self._shown = len(self._ids), max(0, len(last) - held)
        return new


class StopGuard:
    """Holds back what may be the beginning of a stop text, and cuts an answer in front of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """Text of tokens behind which the answer goes on."""
        text = self._held + text
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self, text: str) -> str:
        """Text of an answer's last token, up to the first stop text that ends in it."""
        held, text = len(self._held), self._held + text
        found = [text.find(stop, max(0, held - len(stop) + 1)) for stop in self._stops]
        self._held = ""
        return text[: min((at for at in found if at >= 0), default=len(text))]


class AnswerText:
    """Text of one answer: ids in, what may be shown of it out."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._text, self._guard = TextStream(decode), StopGuard(stops)

    def push(self, ids: Sequence[int], last: bool) -> str:
        """Of the ids of a round; the ``last`` one ends with the token that ends the answer."""
        if not last:
            return self._guard.push(self._text.push(ids))
        before = self._guard.push(self._text.push(ids[:-1])) if len(ids) > 1 else ""
        return before + self._guard.finish(self._text.push(ids[-1:]) + self._text.finish())


def pieces(decode: Decode, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """What each of the ``ids`` would add to the text of the ids ``before``; nothing where one ends within a character,
    all of it with its last.
    """
    context = list(before)
    shown = _settled(decode(context))
    found = []
    for token in ids:
        context.append(token)
        text = _settled(decode(context))
        found.append(text[len(shown) :])
        shown = text if len(text) > len(shown) else shown
    return found


def _settled(text: str) -> str:
    return text.rstrip(UNFINISHED)


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of ``text`` begin ``stop``, without all of it."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
