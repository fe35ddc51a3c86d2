"""Who takes part in a step: requests that generate first, then prompts in pieces, within a budget of tokens.

Blocks are promised to nobody in advance. Where they run out, the request that came last gives up its own and waits;
it goes on later from what it had written, most of which is mostly still found in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dspark.decoding.kvcache import BlockPool, OutOfBlocks
from dspark.decoding.request import Request, Running


@dataclass(frozen=True)
class Share:
    """A request's part in a step: ``count`` tokens of its text are read, or, with 0, it goes on by a round."""

    row: Running
    count: int


class Admission:
    """``slots`` requests at most are under way; a step runs about ``step_tokens`` tokens of them.

    ``round_tokens``: positions that a round may need. ``start`` makes a request's state, or refuses it.
    """

    def __init__(
        self,
        pool: BlockPool,
        requests: Iterable[Request],
        start: Callable[[Request], Running],
        *,
        slots: int,
        step_tokens: int,
        round_tokens: int,
    ) -> None:
        self.pool = pool
        self.running: list[Running] = []  # in the order of their arrival
        self.preemptions = 0
        self._coming = iter(requests)
        self._submitted: deque[Request] = deque()
        self._start = start
        self._slots, self._step_tokens, self._round_tokens = slots, step_tokens, round_tokens
        self._waiting: deque[Running] = deque()

    def shares(self) -> list[Share]:
        """The parts of the next step; none when everything is answered."""
        shares: list[Share] = []
        left = self._step_tokens
        for row in [row for row in self.running if not row.unread]:
            if self._reserve(row, self._round_tokens):
                shares.append(Share(row, 0))
                left -= self._round_tokens
        for row in [row for row in self.running if row.unread]:
            count = min(row.unread, max(left, 0))
            if count and self._reserve(row, count):
                shares.append(Share(row, count))
                left -= count
        shares = [share for share in shares if share.row in self.running]  # without those preempted since
        while left > 0 and len(self.running) < self._slots:
            admitted = self._admit()
            if admitted is None:
                break
            count = min(admitted.unread, left)
            self.pool.reserve(admitted.table, count or self._round_tokens)
            shares.append(Share(admitted, count))
            left -= count or self._round_tokens
        return shares

    def submit(self, request: Request) -> None:
        """A further request, before those that have not been started yet (what it continues may still be cached)."""
        self._submitted.append(request)

    def finish(self, row: Running) -> None:
        """Let go of a request that is answered."""
        self.running.remove(row)
        self.pool.release(row.table)

    def _reserve(self, row: Running, positions: int) -> bool:
        """Make room, at the expense of those that came later; False where the row itself had to go."""
        while row in self.running:
            try:
                self.pool.reserve(row.table, positions)
            except OutOfBlocks:
                self._preempt(self.running[-1])
            else:
                return True
        return False

    def _preempt(self, row: Running) -> None:
        self.running.remove(row)
        self.pool.release(row.table)
        self._waiting.appendleft(row)
        self.preemptions += 1

    def _admit(self) -> Running | None:
        """The next request whose whole text there is room for now, with what is found of it in the cache."""
        if not self._waiting:
            request = self._submitted.popleft() if self._submitted else next(self._coming, None)
            if request is None:
                return None
            self._waiting.append(self._start(request))
        row = self._waiting[0]
        row.table = self.pool.find(row.ids[:-1])
        if self.pool.needed(row.table, len(row.ids) - row.table.length + self._round_tokens) > self.pool.available:
            self.pool.release(row.table)
            return None
        self.running.append(self._waiting.popleft())
        return row
