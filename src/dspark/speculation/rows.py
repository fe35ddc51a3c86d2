"""Rows of different lengths as one array, for steps of many requests.

Legend: N rows, K numbers of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


def side_by_side(rows: Sequence[Sequence[float]], width: int | None = None) -> tuple[Numbers, Counts]:
    """Rows ``[N, K]``, 0 behind their ends, and how long each is ``[N]``; ``width``: K, that of the longest if None."""
    counts = [*map(len, rows)]
    numbers = np.fromiter(chain.from_iterable(rows), np.float64, sum(counts))
    most = max(counts, default=0)
    width, lengths = most if width is None else width, np.array(counts, dtype=np.int64)
    if counts and most == width == min(counts):  # mostly
        return numbers.reshape(len(counts), width), lengths
    beside = np.zeros((len(counts), width))
    beside[np.arange(width) < lengths[:, None]] = numbers
    return beside, lengths


def as_long(beside: Numbers, lengths: Counts) -> list[list[float]]:
    """The rows again, ``lengths [N]`` of ``beside [N, K]``."""
    return [row[:length] for row, length in zip(beside.tolist(), lengths.tolist(), strict=True)]
