"""Features of committed positions whose context rows nobody has needed yet.

Who drafts needs the rows of its own blocks, and nobody else's: while nobody drafts, features are kept as steps gave
them, those of many steps are then put in their places at once (one by one each would find caches cold), and that is
all. A request that ends before then never has any rows made.

Legend: T positions, S places for features, F = L*d tapped features.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache

_BYTES = 2**27  # of features that may wait, whatever the cache holds
# Rows that are made at once: weights are read as often as there are such pieces, and features of more of them leave the
# caches between one product and the next (docs/lab_log.md).
_AT_ONCE = 256


class OwedRows(ABC):
    """A room that makes context rows of ``cache`` when somebody drafts from their blocks; features are ``width`` wide.

    Rows that are written again hold what came last. Where no more features have room, the oldest rows are made.
    """

    def __init__(self, cache: KVCache, width: int) -> None:
        self.cache, like = cache, cache.keys[0]
        most = min(cache.blocks * cache.size, _BYTES // (width * like.element_size()))
        self._features_SF = torch.empty(max(_AT_ONCE, most), width, dtype=like.dtype, device=like.device)
        self._free = list(range(len(self._features_SF)))
        # Of the last steps, not in their places yet: features and what ``_waiting`` will know of them, and blocks that
        # were let go of in between.
        self._fresh: list[tuple[Tensor, Tensor, Tensor, Tensor] | int] = []
        self._fresh_rows = 0
        # By block, the oldest first, and row: where its features are, its position and the token behind it.
        self._waiting: dict[int, dict[int, tuple[int, int, int]]] = {}
        self._latest: set[int] = set()
        self._late = 0.0

    def extend(
        self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor | None = None
    ) -> None:
        """See ``Room``."""
        if self._fresh_rows + len(rows_T) > _AT_ONCE:
            self._put_fresh()
        following = following_T if following_T is not None else rows_T  # which nobody reads then
        self._fresh.append((features_TF, rows_T, positions_T, following))
        self._fresh_rows += len(rows_T)

    @abstractmethod
    def take(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor) -> None:
        """Write the context rows ``rows_T``; ``following``: the tokens behind their positions, if they were given."""

    def settle(self, tables: Iterable[BlockTable]) -> None:
        """Make the rows of all blocks of ``tables``."""
        self._put_fresh()
        self._settle(block for table in tables for block in table.blocks)

    def settle_all(self) -> None:
        """Make all rows."""
        self._put_fresh()
        self._settle(list(self._waiting))

    def drop(self, block: int) -> None:
        """Nobody will read these rows: the block is given to others, or to nobody."""
        if self._fresh:  # its rows may be among these
            self._fresh.append(block)
        else:
            self._forget(block)

    def late(self) -> float:
        """Seconds since this was last asked that went into rows which had waited for longer than a step."""
        late, self._late = self._late, 0.0
        return late

    @torch.inference_mode()  # a request may be given up between two steps
    def _put_fresh(self) -> None:
        """Features of the last steps in their places; ``_latest``: those of the last one."""
        fresh, self._fresh, self._fresh_rows = self._fresh, [], 0
        pieces, due = list[Tensor](), dict[int, int]()
        for each in fresh:
            if isinstance(each, int):
                self._forget(each)
                continue
            features_TF, *about = each
            known = list(zip(*(every.tolist() for every in about), strict=True))
            self._latest.clear()
            for first in range(0, len(known), _AT_ONCE):
                piece = slice(first, first + _AT_ONCE)
                if len(due) >= _AT_ONCE or len(self._free) < _AT_ONCE:  # rows are made of what is in its place
                    self._copy(pieces, due)
                behind = count(sum(map(len, pieces)))
                due |= zip(self._put(known[piece]), behind, strict=False)
                pieces.append(features_TF[piece])
        self._copy(pieces, due)

    def _copy(self, pieces: list[Tensor], due: dict[int, int]) -> None:
        """Features to the places ``due``, each the row of all ``pieces`` that it got last."""
        if due:
            rows_TF, places_T = torch.cat(pieces).to(self._features_SF), torch.tensor([*due])
            if len(due) < len(rows_TF):
                rows_TF = rows_TF[torch.tensor([*due.values()], device=rows_TF.device)]
            self._features_SF.index_copy_(0, places_T.to(rows_TF.device), rows_TF)
        pieces.clear()
        due.clear()

    def _forget(self, block: int) -> None:
        self._free += [place for place, _, _ in self._waiting.pop(block, {}).values()]

    def _put(self, rows: Sequence[tuple[int, int, int]]) -> list[int]:
        while len(self._free) < len(rows):
            self._settle([next(iter(self._waiting))])
        places = []
        for row, position, following in rows:
            mine = self._waiting.setdefault(row // self.cache.size, {})
            place = mine[row][0] if row in mine else self._free.pop()
            mine[row] = place, position, following
            places.append(place)
        self._latest.update(places)
        return places

    def _settle(self, blocks: Iterable[int]) -> None:
        due = [(row, *at) for block in blocks for row, at in self._waiting.pop(block, {}).items()]
        if not due:
            return
        started, rest = time.perf_counter(), iter(due)
        while some := list(islice(rest, _AT_ONCE)):
            rows_T, places_T, *at = torch.tensor(some, device=self._features_SF.device).T.contiguous()
            self.take(self._features_SF.index_select(0, places_T), at[0], rows_T, at[1])
        places = [place for _, place, _, _ in due]
        self._free += places
        late = 1 - len(self._latest.intersection(places)) / len(places)
        self._late += late * (time.perf_counter() - started)
