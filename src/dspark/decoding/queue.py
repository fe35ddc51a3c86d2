"""Requests that wait: by priority, then by arrival, and none for ever.

Requests that were preempted go first, since they hold what was worked for; then those that were submitted; then those
still to be taken from where the others come from.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dspark.decoding.request import Request, Running
from dspark.foundation.errors import UserError

# A request goes next when so many that came later have been preferred to it since it was the oldest.
PATIENCE = 64


@dataclass
class _Entry:
    """A submitted request, the how manieth it was, and how many were preferred to it while it was the oldest."""

    request: Request
    number: int
    passed: int = 0


class Queue:
    """``coming``: requests that are taken one by one, whenever nobody else waits. ``start`` makes a request's state, or
    refuses it.
    """

    def __init__(self, coming: Iterable[Request], start: Callable[[Request], Running]) -> None:
        self._coming, self._start = iter(coming), start
        self._preempted: deque[Running] = deque()
        self._entries: dict[str, _Entry] = {}  # by arrival
        self._order: list[tuple[int, int, str]] = []  # a heap of (priority, number, id); some may be gone
        self._count = 0

    def __len__(self) -> int:
        """How many wait, without those still to come."""
        return len(self._preempted) + len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries or any(row.request.id == request_id for row in self._preempted)

    def submit(self, request: Request) -> None:
        """One more; UserError where its id waits already."""
        if request.id in self:
            raise UserError(f"a request of the id {request.id!r} waits already; ids must be unique")
        self._entries[request.id] = _Entry(request, self._count)
        heapq.heappush(self._order, (request.priority, self._count, request.id))
        self._count += 1

    def put_back(self, row: Running) -> None:
        """A request that had to give way."""
        self._preempted.appendleft(row)

    def next(self) -> Running | None:
        """Whose turn it is; asked again, the same one until it is ``taken``."""
        if not self._preempted:
            entry = self._chosen()
            if entry is None:
                return None
            del self._entries[entry.request.id]
            oldest = next(iter(self._entries.values()), None)
            if oldest is not None and oldest.number < entry.number:
                oldest.passed += 1
            row = self._start(entry.request)
            row.number = entry.number
            self._preempted.append(row)
        return self._preempted[0]

    def taken(self) -> None:
        """The next one is under way."""
        self._preempted.popleft()

    def withdraw(self, request_id: str) -> Request | Running | None:
        """Let it wait no longer; None where it does not."""
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            return entry.request
        row = next((row for row in self._preempted if row.request.id == request_id), None)
        if row is not None:
            self._preempted.remove(row)
        return row

    def requests(self) -> Iterator[Request]:
        """All that wait, without those still to come."""
        yield from (row.request for row in self._preempted)
        yield from (entry.request for entry in self._entries.values())

    def _chosen(self) -> _Entry | None:
        if not self._entries:
            request = next(self._coming, None)
            if request is None:
                return None
            self.submit(request)
        oldest = next(iter(self._entries.values()))
        if oldest.passed >= PATIENCE:
            return oldest
        while True:
            _, number, request_id = self._order[0]
            entry = self._entries.get(request_id)
            if entry is not None and entry.number == number:
                return entry
            heapq.heappop(self._order)
