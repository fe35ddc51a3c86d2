"""A step's drafts in the order of their worth, and what of them is verified.

The order is (-survival, position, request), and never a value that depends on a later token. Survival does not rise
along a request, so whatever stands first in that order is a prefix of every request's drafts, exactly equal survival
(a saturated confidence) included.

Legend: R requests, N drafts of all requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np

from dspark.speculation.rows import Counts, Numbers

Ranked = list[float] | Numbers
Whose = list[int] | Counts
Survival = tuple[float, ...]
"""``a_1..a_k`` of a request's drafts: the chance that the first 1, 2, ... all stand."""
FEW = 64
"""Drafts up to which numbers are taken one by one: making arrays of them takes longer (``benchmarks/planner.py``)."""


@dataclass(frozen=True)
class Present:
    """Drafts of this step, which nobody has verified yet.

    ``rows [R]``: survival of each request's drafts, never rising, and as long as these are (nothing for a request that
    is new, at its end or not drafting). Raises ValueError for what is none.
    """

    rows: tuple[Survival, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            before = 1.0
            for each in row:
                if not 0 <= each <= before:  # so that NaN fails
                    raise ValueError(
                        f"survival {row} is none: it must lie between 0 and 1 and never rise along a request's drafts"
                    )
                before = each

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> Present:
        """Of rows of any kind."""
        return cls(tuple(map(tuple, rows)))

    @property
    def requests(self) -> int:
        """R."""
        return len(self.rows)

    @property
    def drafts(self) -> int:
        """N."""
        return sum(map(len, self.rows))

    def ranked(self) -> tuple[Ranked, Whose]:
        """Survival ``[N]`` of all drafts, the most certain first, and whose each is ``[N]``; arrays if these are many,
        lists if they are few.
        """
        if self.drafts > FEW:
            return self._ranked_at_once()
        order = sorted((-each, k, r) for r, row in enumerate(self.rows) for k, each in enumerate(row))
        return [-key for key, _, _ in order], [r for _, _, r in order]

    def _ranked_at_once(self) -> tuple[Numbers, Counts]:
        counts = np.array([len(row) for row in self.rows])
        keys = -np.fromiter(chain.from_iterable(self.rows), np.float64, int(counts.sum()))
        whose = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(keys)) - np.repeat(counts.cumsum() - counts, counts)
        by_place = np.argsort(places.astype(np.int16), kind="stable")
        keys, whose = keys[by_place], whose[by_place]
        order = np.argsort(keys)
        if (np.diff(keys[order]) == 0).any():  # a stable sort takes four times as long, and matters only then
            order = np.argsort(keys, kind="stable")
        return -keys[order], whose[order]


@dataclass(frozen=True)
class Plan:
    """How many drafts of each request are verified, and for each of them the one it follows (-1: the anchor).

    Today every request's drafts are a chain.
    """

    lengths: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def first(cls, whose: Whose, count: int, requests: int) -> Plan:
        """The first ``count`` of the ranked drafts, of which ``whose`` says to whom they belong."""
        if isinstance(whose, np.ndarray):
            return cls.chains(np.bincount(whose[:count], minlength=requests).tolist())
        lengths = [0] * requests
        for request in whose[:count]:
            lengths[request] += 1
        return cls.chains(lengths)

    @classmethod
    def chains(cls, lengths: Sequence[int]) -> Plan:
        """Prefixes of these lengths."""
        return cls(tuple(lengths), tuple(map(_chain, lengths)))

    @property
    def drafts(self) -> int:
        """Of all requests together."""
        return sum(self.lengths)


@cache
def _chain(length: int) -> tuple[int, ...]:
    return tuple(range(-1, length - 1))
