"""Text of a growing list of token ids, piece by piece, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns token ids into text as they come.

    A token may hold a part of a character, and how a token reads may depend on its neighbours. So the ids
    since the piece before the last are decoded together, and text is held back while it ends in an unfinished
    character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # first id that is decoded again
        self._shown = 0  # ids whose text is out

    def push(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` complete; may be empty."""
        self._ids += ids
        return self._take(final=False)

    def finish(self) -> str:
        """What was held back, as it stands."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        if not final and text.endswith(UNFINISHED):
            return ""
        if len(text) > len(before):
            self._context, self._shown = self._shown, len(self._ids)
        return text[len(before) :]
