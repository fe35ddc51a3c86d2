"""Features of committed positions whose context rows nobody has needed yet.

Who drafts needs the rows of its own blocks, and nobody else's: while nobody drafts, features are kept as steps gave
them, those of many steps are then put in their places at once (one by one each would find caches cold), and that is
all. A request that ends before then never has any rows made.

Legend: T positions of a step, N of many steps, S places for features, C rows of the cache, F = L*d tapped features.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache

_BYTES = 2**27  # of features that may wait, whatever the cache holds
# Rows that are made at once: weights are read as often as there are such pieces, and features of more of them leave the
# caches between one product and the next (docs/lab_log.md).
_AT_ONCE = 256


class _Step(NamedTuple):
    """What a step left: ``features [T, F]``, and of each the row of the cache, the position and the token behind it."""

    features: Tensor
    rows: Tensor
    positions: Tensor
    following: Tensor


class OwedRows(ABC):
    """A room that makes context rows of ``cache`` when somebody drafts from their blocks; features are ``width`` wide.

    Rows that are written again hold what came last. Where no more features have room, the oldest rows are made.
    """

    def __init__(self, cache: KVCache, width: int) -> None:
        self.cache, like = cache, cache.keys[0]
        rows = cache.blocks * cache.size
        most = min(rows, _BYTES // (width * like.element_size()))
        self._features_SF = torch.empty(max(_AT_ONCE, most), width, dtype=like.dtype, device=like.device)
        self._free = list(range(len(self._features_SF)))
        # Of the last steps, not in their places yet; how many steps there were, and when blocks were let go of since.
        self._fresh: list[_Step] = []
        self._fresh_rows = self._steps = 0
        self._dropped: dict[int, int] = {}
        self._waiting: dict[int, None] = {}
        """Blocks with rows whose features are in a place, the oldest first."""
        self._place_C, self._position_C, self._following_C, self._came_C = np.full((4, rows), -1)
        """Of such a row its place, its position, the token behind it and the step that it came from; else -1."""
        self._late = 0.0

    def extend(
        self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor | None = None
    ) -> None:
        """See ``Room``."""
        if self._fresh_rows + len(rows_T) > _AT_ONCE:
            self._put_fresh()
        self._steps += 1
        self._fresh_rows += len(rows_T)
        following = following_T if following_T is not None else rows_T  # which nobody reads then
        self._fresh.append(_Step(features_TF, rows_T, positions_T, following))

    @abstractmethod
    def take(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor) -> None:
        """Write the context rows ``rows_T``; ``following``: the tokens behind their positions, if they were given."""

    def settle(self, tables: Iterable[BlockTable]) -> None:
        """Make the rows of all blocks of ``tables``."""
        blocks = dict.fromkeys(block for table in tables for block in table.blocks)
        if self._only_news_of(blocks):
            self._fresh_rows = 0
            features_TF, rows_T, positions_T, following_T = self._fresh.pop()
            self.take(features_TF.to(self._features_SF), positions_T, rows_T, following_T)
        else:
            self._put_fresh()
            self._settle(blocks)

    def settle_all(self) -> None:
        """Make all rows."""
        self._put_fresh()
        self._settle([*self._waiting])

    def drop(self, block: int) -> None:
        """Nobody will read these rows: the block is given to others, or to nobody."""
        if self._fresh:  # its rows may be among these
            self._dropped[block] = self._steps
        else:
            self._forget(block)

    def late(self) -> float:
        """Seconds since this was last asked that went into rows which had waited for longer than a step."""
        late, self._late = self._late, 0.0
        return late

    def _only_news_of(self, blocks: dict[int, None]) -> bool:
        """Whether rows of these blocks, and no others, come from the last step alone: then they need no places."""
        if len(self._fresh) != 1 or self._dropped or not self._waiting.keys().isdisjoint(blocks):
            return False
        rows, size = self._fresh[0].rows, self.cache.size
        return len(rows) <= _AT_ONCE and all(row // size in blocks for row in rows.tolist())

    @torch.inference_mode()  # a request may be given up between two steps
    def _put_fresh(self) -> None:
        """Features of the last steps in their places."""
        fresh, self._fresh, self._fresh_rows = self._fresh, [], 0
        if not fresh:
            return
        about_3N = torch.stack([torch.cat(each) for each in list(zip(*fresh, strict=True))[1:]])
        rows_N, positions_N, following_N = about_3N.cpu().numpy()
        first = self._steps - len(fresh) + 1
        came_N = np.repeat(np.arange(first, self._steps + 1), [len(step.rows) for step in fresh])
        stay_N = self._last_of(rows_N, came_N)
        for some, features in _at_once([step.features for step in fresh], stay_N):
            places = self._placed(rows_N[some])
            parts = self._tensor(places).split([len(each) for each in features])
            for part, each in zip(parts, features, strict=True):
                self._features_SF.index_copy_(0, part, each.to(self._features_SF))
            for about_C, each_N in (
                (self._place_C, places),
                (self._position_C, positions_N[some]),
                (self._following_C, following_N[some]),
                (self._came_C, came_N[some]),
            ):
                about_C[rows_N[some]] = each_N

    def _last_of(self, rows_N: NDArray[np.int64], came_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the fresh rows nobody has let go of or written again since."""
        stay_N = np.arange(len(rows_N))
        if dropped := self._dropped:
            self._dropped = {}
            since = np.zeros(self.cache.blocks, dtype=np.int64)
            since[[*dropped]] = [*dropped.values()]
            for block in dropped:
                self._forget(block)
            stay_N = stay_N[came_N > since[rows_N // self.cache.size]]
        _, from_end = np.unique(rows_N[stay_N][::-1], return_index=True)
        return stay_N if len(from_end) == len(stay_N) else stay_N[np.sort(len(stay_N) - 1 - from_end)]

    def _placed(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where features of these rows are put, at most as many as there are places."""
        while True:
            places_N = self._place_C[rows_N]
            new = np.flatnonzero(places_N < 0)
            if len(new) <= len(self._free):
                break
            self._settle([next(iter(self._waiting))])
        left = len(self._free) - len(new)
        places_N[new] = self._free[left:]
        del self._free[left:]
        self._waiting |= dict.fromkeys((rows_N // self.cache.size).tolist())
        return places_N

    def _forget(self, block: int) -> None:
        """Places of the rows of a block are free again."""
        if block in self._waiting:
            self._emptied(self._rows_of(block))
            del self._waiting[block]

    def _rows_of(self, block: int) -> NDArray[np.int64]:
        first, size = block * self.cache.size, self.cache.size
        rows: NDArray[np.int64] = first + np.flatnonzero(self._place_C[first : first + size] >= 0)
        return rows

    def _emptied(self, rows_N: NDArray[np.int64]) -> None:
        self._free += self._place_C[rows_N].tolist()
        self._place_C[rows_N] = -1

    def _settle(self, blocks: Iterable[int]) -> None:
        due = [block for block in blocks if block in self._waiting]
        if not due:
            return
        started = time.perf_counter()
        rows_N = np.concatenate([self._rows_of(block) for block in due])
        for first in range(0, len(rows_N), _AT_ONCE):
            some = rows_N[first : first + _AT_ONCE]
            about = (self._place_C, self._position_C, self._following_C)
            rows_T, places_T, positions_T, following_T = map(self._tensor, (some, *(each[some] for each in about)))
            self.take(self._features_SF.index_select(0, places_T), positions_T, rows_T, following_T)
        late = float((self._came_C[rows_N] < self._steps).mean())
        self._emptied(rows_N)
        for block in due:
            del self._waiting[block]
        self._late += late * (time.perf_counter() - started)

    def _tensor(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._features_SF.device)


def _at_once(features: list[Tensor], stay_N: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Sequence[Tensor]]]:
    """Those of the fresh rows that stay, no more than ``_AT_ONCE`` together, and their features, one behind the other:
    as steps left them where that is all of them.
    """
    if len(stay_N) == sum(map(len, features)) <= _AT_ONCE:
        yield stay_N, features
        return
    features_NF = torch.cat(features)
    if len(stay_N) < len(features_NF):
        features_NF = features_NF[torch.from_numpy(stay_N).to(features_NF.device)]
    for first in range(0, len(stay_N), _AT_ONCE):
        piece = slice(first, first + _AT_ONCE)
        yield stay_N[piece], [features_NF[piece]]
