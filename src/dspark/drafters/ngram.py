"""Prompt lookup: what followed the last words the last time. A drafter without weights, and the free
baseline.

Its p_d is exactly one-hot, so the same rejection sampling makes it lossless at every temperature.

Shapes: `_KU` drafted tokens times the distinct ids among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.speculation.loop import Draft, Sample


class PromptLookup:
    """One request of prompt lookup (a DrafterState).

    Finds the most recent earlier occurrence of the longest suffix of prompt and output, max_ngram ids down to
    one, and proposes the `block` ids that followed it. Where they run into the end of the text the copy goes
    on over its own proposals, so a loop of any period is proposed in full. No occurrence: an empty draft.
    """

    def __init__(self, block: int, max_ngram: int = 3) -> None:
        if block < 1 or max_ngram < 1:
            raise UserError(f"block is {block} and max_ngram {max_ngram}; both must be at least 1")
        self.block = block
        self.max_ngram = max_ngram
        # n-gram -> position behind its last occurrence that has a token behind it.
        self._continuation: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample) -> Draft:
        """Propose up to K ids after ids[-1]; neither features nor draws are used. `ids` only grows between
        calls.
        """
        self._index(ids)
        start = self._find(ids)
        if start is None:
            return Draft([], torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
        period = len(ids) - start
        tokens = [ids[start + i % period] for i in range(self.block)]
        support_U, index_K = torch.unique(torch.tensor(tokens), return_inverse=True)
        p_KU = torch.nn.functional.one_hot(index_K, len(support_U)).float()
        return Draft(tokens, p_KU, support_U)

    def _index(self, ids: list[int]) -> None:
        """Note every n-gram that ends before the last id; each position once in the life of the request."""
        for end in range(self._indexed + 1, len(ids)):
            for n in range(1, min(self.max_ngram, end) + 1):
                self._continuation[tuple(ids[end - n : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)

    def _find(self, ids: list[int]) -> int | None:
        for n in range(min(self.max_ngram, len(ids)), 0, -1):
            start = self._continuation.get(tuple(ids[-n:]))
            if start is not None:
                return start
        return None
