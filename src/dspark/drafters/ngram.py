"""Prompt lookup: what followed the last words the last time. A drafter without weights: the free baseline, and
what a trained drafter is spared where the text repeats itself.

Its p_d is exactly one-hot, so the same rejection sampling makes it lossless at every temperature.

Shapes: `_TF` positions times L*d tapped features.
"""

from __future__ import annotations

import math

from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.speculation.loop import Draft, Sample

# Of ids copied after m matching ones, m / (m + doubt) were found to stand (docs/lab_log.md): of a greedy text, and how
# much more doubt the square of a temperature adds.
_DOUBT, _BY_CHANCE = 1.5, 2.0


class PromptLookup:
    """One request of prompt lookup (a DrafterState).

    Finds the most recent earlier occurrence of the longest suffix of prompt and output, max_ngram ids down to
    min_ngram, and proposes the `block` ids that followed it. Where they run into the end of the text the copy
    goes on over its own proposals, so a loop of any period is proposed in full. No occurrence: an empty draft.

    With ``cautious`` a copy has only as many ids as matched, and says how likely they are to stand in a text of this
    ``temperature``.
    """

    def __init__(
        self, block: int, max_ngram: int = 3, min_ngram: int = 1, *, cautious: bool = False, temperature: float = 0.0
    ) -> None:
        if block < 1 or not 1 <= min_ngram <= max_ngram:
            raise UserError(
                f"block is {block}, min_ngram {min_ngram} and max_ngram {max_ngram}; all must be at least 1, and"
                " min_ngram at most max_ngram"
            )
        self.block = block
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self.cautious = cautious
        self._doubt = _DOUBT + _BY_CHANCE * temperature**2
        # n-gram of the least length -> positions behind it that have a token, the latest last.
        self._behind: dict[tuple[int, ...], list[int]] = {}
        self._indexed = 0

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        """Propose up to K ids after ids[-1]; neither features nor draws are used. `ids` only grows between
        calls.
        """
        self._index(ids)
        start, matched = self._find(ids)
        if not matched:
            return Draft([], source="lookup")
        length = min(self.block, matched) if self.cautious else self.block
        confidence = [math.log(matched / self._doubt)] * length if self.cautious else None
        period = len(ids) - start
        return Draft([ids[start + i % period] for i in range(length)], confidence=confidence, source="lookup")

    def _index(self, ids: list[int]) -> None:
        """Note where the shortest n-grams end, before the last id; each position once in the life of the request."""
        least = self.min_ngram
        for end in range(max(self._indexed + 1, least), len(ids)):
            self._behind.setdefault(tuple(ids[end - least : end]), []).append(end)
        self._indexed = max(self._indexed, len(ids) - 1)

    def _find(self, ids: list[int]) -> tuple[int, int]:
        """Where the copy begins, and how many ids matched (0: none did)."""
        start = longest = 0
        for end in reversed(self._behind.get(tuple(ids[-self.min_ngram :]), ())):
            matched = self.min_ngram
            while matched < min(self.max_ngram, end) and ids[end - matched - 1] == ids[-matched - 1]:
                matched += 1
            if matched > longest:
                start, longest = end, matched
            if longest == self.max_ngram:
                break
        return start, longest
