"""What the tokens of a step see of cached blocks, and which thread reads for which of them.

Legend: T tokens, R requests, K slots of a draft.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from itertools import accumulate, pairwise

import torch
from torch import Tensor

_BESIDES = 16  # what a token takes besides reading, in positions


class Seen:
    """Which positions each token of a step sees, as the kernel reads it."""

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        firsts: Sequence[int],
        counts: Sequence[int],
        causal: bool,
        interleaved: bool = False,
    ) -> None:
        """``counts[i]`` tokens at positions from ``firsts[i]`` on, in the blocks ``blocks[i]``.

        They lie request by request; ``interleaved``: the first of all requests before the second of any, all counts
        being equal.
        """
        flat: list[int] = []
        tokens: list[tuple[int, int, int, int]] = []
        for number, (own, first, count) in enumerate(zip(blocks, firsts, counts, strict=True)):
            end = first + count
            start, apart = (number, len(blocks)) if interleaved else (len(tokens), 1)
            places = range(start, start + count * apart, apart)
            tokens += [
                (len(flat), at, at + 1 if causal else end, place)
                for at, place in zip(range(first, end), places, strict=True)
            ]
            flat += own
        self._blocks, self._tokens_T4 = torch.tensor(flat), torch.tensor(tokens)
        self._shares = _shares([end for _, _, end, _ in tokens], torch.get_num_threads())

    @property
    def addresses(self) -> tuple[int, int, int]:
        """What the kernel's table begins with."""
        return self._blocks.data_ptr(), self._tokens_T4.data_ptr(), self._shares.data_ptr()

    def by_slot(self, slots: int) -> list[Seen]:
        """A step of its own for each slot, where every request has ``slots`` tokens."""
        tokens_KR4 = self._tokens_T4.view(-1, slots, 4).transpose(0, 1).clone(memory_format=torch.contiguous_format)
        tokens_KR4[..., 3] = torch.arange(tokens_KR4.shape[1])
        shares = _shares(tokens_KR4[0, :, 2].tolist(), torch.get_num_threads())
        steps = [copy(self) for _ in range(slots)]
        for step, tokens_R4 in zip(steps, tokens_KR4, strict=True):
            step._tokens_T4, step._shares = tokens_R4, shares
        return steps


def _shares(reads: Sequence[int], count: int) -> Tensor:
    """``count``, then where that many parts of the tokens begin and the last one ends: each reads about the same (where
    no window hides most of it). A token belongs to the part in which its middle lies.
    """
    ends = list(accumulate((each + _BESIDES for each in reads), initial=0))
    middles = [(begin + end) / 2 for begin, end in pairwise(ends)]
    return torch.tensor([count, *(bisect_left(middles, part * ends[-1] / count) for part in range(count)), len(reads)])
