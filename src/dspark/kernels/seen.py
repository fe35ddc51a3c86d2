"""What the tokens of a step see of cached blocks, and which thread reads for which of them.

Legend: T tokens, R requests, K slots of a draft.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from itertools import accumulate, chain, pairwise

import numpy as np
import torch

from dspark.kernels.machine import NUMBER

_OF_TOKEN = 4  # numbers: where its blocks begin, its position, where what it sees ends, its place
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
        tokens: list[tuple[int, ...]] = []
        for number, (own, first, count) in enumerate(zip(blocks, firsts, counts, strict=True)):
            end = first + count
            start, apart = (number, len(blocks)) if interleaved else (len(tokens), 1)
            places = range(start, start + count * apart, apart)
            tokens += [
                (len(flat), at, at + 1 if causal else end, place)
                for at, place in zip(range(first, end), places, strict=True)
            ]
            flat += own
        self._blocks, self._tokens = flat, tokens
        self._lay_out()

    def _lay_out(self) -> None:
        """In one array: what a step is told in small pieces takes longer to make than to read."""
        shares = _shares([end for _, _, end, _ in self._tokens], torch.get_num_threads())
        self._numbers = np.array([*self._blocks, *chain.from_iterable(self._tokens), *shares], dtype=np.int64)
        blocks: int = self._numbers.__array_interface__["data"][0]
        tokens = blocks + NUMBER * len(self._blocks)
        self.addresses = blocks, tokens, tokens + NUMBER * _OF_TOKEN * len(self._tokens)
        """What the kernel's table begins with."""

    def by_slot(self, slots: int) -> list[Seen]:
        """A step of its own for each slot, where every request has ``slots`` tokens."""
        steps = [copy(self) for _ in range(slots)]
        for slot, step in enumerate(steps):
            step._tokens = [(*most, number) for number, (*most, _) in enumerate(self._tokens[slot::slots])]
            step._lay_out()
        return steps


def _shares(reads: Sequence[int], count: int) -> list[int]:
    """``count``, then where that many parts of the tokens begin and the last one ends: each reads about the same (where
    no window hides most of it). A token belongs to the part in which its middle lies.
    """
    ends = list(accumulate((each + _BESIDES for each in reads), initial=0))
    middles = [(begin + end) / 2 for begin, end in pairwise(ends)]
    return [count, *(bisect_left(middles, part * ends[-1] / count) for part in range(count)), len(reads)]
