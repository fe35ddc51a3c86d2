"""Who takes part in a step: requests that generate first, then prompts in pieces, within a budget of tokens.

Blocks are promised to nobody in advance. Where they run out, the least urgent request, of these the one that came last,
gives up its own and waits; it goes on later from what it had written, most of which is mostly still found in the cache.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dspark.decoding.kvcache import BlockPool, OutOfBlocks
from dspark.decoding.queue import Queue
from dspark.decoding.request import Request, Running
from dspark.foundation.errors import UserError


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
        self.running: list[Running] = []  # the most urgent first, then by arrival
        self.queue = Queue(requests, start)
        self.preemptions = 0
        self._slots, self._step_tokens, self._round_tokens = slots, step_tokens, round_tokens

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
        """A further request, before those that are still to come (what it continues may still be cached); UserError
        where its id is under way.
        """
        if any(row.request.id == request.id for row in self.running):
            raise UserError(f"a request of the id {request.id!r} is under way already; ids must be unique")
        self.queue.submit(request)

    def withdraw(self, request_id: str) -> Request | Running | None:
        """Let go of a request, wherever it is; None where it is nowhere."""
        row = next((row for row in self.running if row.request.id == request_id), None)
        if row is None:
            return self.queue.withdraw(request_id)
        self.finish(row)
        return row

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
        self.finish(row)
        self.queue.put_back(row)
        self.preemptions += 1

    def _admit(self) -> Running | None:
        """The next request whose whole text there is room for now, with what is found of it in the cache."""
        row = self.queue.next()
        if row is None:
            return None
        row.table = self.pool.find(row.ids[:-1])
        if self.pool.needed(row.table, len(row.ids) - row.table.length + self._round_tokens) > self.pool.available:
            self.pool.release(row.table)
            return None
        self.queue.taken()
        insort(self.running, row, key=lambda each: (each.request.priority, each.number))
        return row
