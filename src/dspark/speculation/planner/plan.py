"""A step's drafts in the order of their worth, and what of them is verified.

The order is (-survival, position, request), and never a value that depends on a later token. Survival does not rise
along a request, so whatever stands first in that order is a prefix of every request's drafts, exactly equal survival
(a saturated confidence) included.

Legend: R requests, K drafts of the longest block, N drafts of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Present:
    """Drafts of this step, which nobody has verified yet.

    survival ``a [R, K]``: the chance that drafts 1..k all stand, never rising along a row; drafted ``[R]``: how many
    there are (0 for a request that is new, at its end or not drafting), 0 to K. Behind them survival is not read.
    Raises ValueError where the two don't fit or survival is none.
    """

    survival: Numbers
    drafted: Counts

    def __post_init__(self) -> None:
        shape, block = self.survival.shape, self.survival.shape[-1]
        if len(shape) != 2 or self.drafted.shape != shape[:1]:
            raise ValueError(f"survival {shape} and numbers of drafts {self.drafted.shape} do not fit")
        if len(self.drafted) and not (self.drafted.min() >= 0 and self.drafted.max() <= block):
            raise ValueError(f"{self.drafted.tolist()} drafts of requests; expected 0 to {block}")
        before = np.concatenate((np.ones((shape[0], 1)), self.survival[:, :-1]), axis=1)
        if not ((self.survival >= 0) & (self.survival <= before) | ~self._there).all():  # so that NaN fails
            raise ValueError("survival must lie between 0 and 1 and never rise along a request's drafts")

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Present:
        """Of rows as long as what each request drafted."""
        survival = np.zeros((len(rows), max(map(len, rows), default=0)))
        for line, row in zip(survival, rows, strict=True):
            line[: len(row)] = row
        return cls(survival, np.array([len(row) for row in rows], dtype=np.int64))

    @property
    def requests(self) -> int:
        """R."""
        return len(self.drafted)

    @property
    def _there(self) -> NDArray[np.bool_]:
        return np.arange(self.survival.shape[1]) < self.drafted[:, None]

    def ranked(self) -> tuple[Numbers, Counts]:
        """Survival ``[N]`` of all drafts, the most certain first, and whose each is ``[N]``."""
        drafts = np.flatnonzero(self._there.T)  # by position, then by request
        keys = -self.survival.T.ravel()[drafts]
        order = np.argsort(keys)
        if (
            np.diff(keys[order]) == 0
        ).any():  # only then does it matter that a stable sort, four times as long, is used
            order = np.argsort(keys, kind="stable")
        return -keys[order], drafts[order] % max(1, self.requests)


@dataclass(frozen=True)
class Plan:
    """How many drafts of each request are verified, and for each of them the one it follows (-1: the anchor).

    Today every request's drafts are a chain.
    """

    lengths: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def first(cls, whose: Counts, count: int, requests: int) -> Plan:
        """The first ``count`` of the ranked drafts, of which ``whose`` says to whom they belong."""
        return cls.chains(np.bincount(whose[:count], minlength=requests).tolist())

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
