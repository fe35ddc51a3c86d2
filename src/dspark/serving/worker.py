"""The engine in a thread of its own: requests go in through an inbox, what is new of them comes out after every step.

The thread of the event loop knows the tickets and the inbox, the engine's thread everything else; nothing is locked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dspark.decoding.admission import Share
from dspark.decoding.engine import Engine
from dspark.decoding.logprobs import TokenLogprob
from dspark.decoding.request import GivenUp, Reason, Request, Running
from dspark.decoding.work import Work
from dspark.foundation.errors import UserError
from dspark.kernels.machine import dismiss_team
from dspark.serving.errors import ApiError
from dspark.serving.mailbox import Mailbox
from dspark.speculation.acceptance import Round

log = logging.getLogger("dspark.serving")

# While requests wait and nobody can have a part in a step, look again so often (seconds).
_PATIENCE = 0.01
# How fast the time between two places that become free is learned, and the longest that anybody is told to wait.
_LEARNING, _LONGEST_WAIT = 0.1, 30.0


@dataclass(frozen=True)
class Progress:
    """A round of a request: what it gained, which drafts were verified, and how likely its tokens were."""

    round: Round
    drafts: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A request that will not be answered to its end, and why."""

    reason: Reason | Literal["shutdown", "failed", "refused"]
    message: str = ""


Event = Progress | Ended
BROKEN = Ended(
    "broken",
    "the model gave no numbers (NaN) for this request, so it can't go on; others are not affected. Another prompt may"
    " do, or a server with --dtype float32",
)
FAILED = Ended("failed", "the engine has failed while this request was under way")


@dataclass(eq=False)
class Ticket:
    """A request that was handed in; ``events``: where its own ``(ticket, event)`` arrive. Times are monotonic."""

    request: Request
    index: int
    events: Mailbox[tuple[Ticket, Event]]
    trace: bool = False
    asked: float = field(default_factory=time.monotonic)
    last: float | None = None
    """When its newest token came."""
    rounds: int = 0
    logprobs: int = 0


@dataclass(frozen=True)
class Stepped:
    """What one step did: the rounds of everybody, tickets' own progress, prompt tokens that were read, seconds."""

    rounds: Sequence[Round]
    news: Sequence[tuple[Ticket, Event]]
    read: int
    seconds: float
    at: float


class Listener(Protocol):
    """Who counts what happens."""

    def heard(self, stepped: Stepped) -> None:
        """A step is over; tickets still say when their token before came."""

    def ended(self, ended: Ended) -> None:
        """A request was not answered to its end."""


class Busy(ApiError):
    """There are as many requests as may wait; come back in ``seconds``."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(
            429,
            f"{waiting} requests are under way or wait already; try again in {seconds} s",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )


class Worker:
    """Runs ``engine`` from ``start`` to ``stop``; at most ``capacity`` requests are with it. ``metrics`` hear of every
    step, in the engine's thread.
    """

    def __init__(self, engine: Engine, capacity: int, metrics: Listener) -> None:
        self.engine = engine
        self.failure: str | None = None
        """Why nothing is answered any more; None while all is well."""
        self.draining = False
        self.drafts: dict[str, tuple[int, ...]] = {}
        """Drafts of the step that were verified, of requests whose rounds are traced."""
        self._capacity, self._metrics = capacity, metrics
        self._open: set[Ticket] = set()  # of the event loop, as is when a place was free last, and how often one is
        self._freed, self._between = time.monotonic(), 1.0
        self._tickets: dict[str, Ticket] = {}  # of the engine's thread
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping, self._ends_at = False, float("inf")
        engine.lose = self._lost
        engine.meanwhile = self._deliver
        self._untold: list[tuple[Ticket, Event]] = []

    def observe(self, work: Work) -> None:
        """What a request does in the engine's step: keeps the drafts that a trace tells of."""
        ticket = self._tickets.get(work.row.request.id)
        if ticket is not None and ticket.trace:
            self.drafts[work.row.request.id] = tuple(work.draft.tokens[: work.length])

    # ---- the event loop's side

    def start(self) -> None:
        """Begin; events go to the running loop, whose thread computes no more."""
        self._loop = asyncio.get_running_loop()
        dismiss_team()
        self._thread.start()

    def check(self, count: int) -> None:
        """ApiError unless so many more requests may come: 429 where too many wait, 503 where nobody is answered."""
        if self.failure is not None:
            raise ApiError(503, f"the engine has failed ({self.failure}); restart the server", code="engine_failed")
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
        if len(self._open) + count > self._capacity:
            raise Busy(len(self._open), max(1, math.ceil(count * self._between)))

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Hand in requests, all or none."""
        self.check(len(tickets))
        self._open.update(tickets)
        for ticket in tickets:
            self._post(lambda ticket=ticket: self._begin(ticket))  # type: ignore[misc]

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Give up those that are still under way."""
        for ticket in self._open.intersection(tickets):
            self._post(lambda ticket=ticket: self._give_up(ticket.request.id))  # type: ignore[misc]

    def drain(self, seconds: float) -> None:
        """Take nobody new, and end whoever is not answered in so many seconds. Callable from any thread."""
        self.draining = True
        ends_at = time.monotonic() + seconds
        self._post(lambda: self._end_at(ends_at))

    async def stop(self) -> None:
        """End the thread, whatever it still has."""
        self._post(self._leave)
        await asyncio.to_thread(self._thread.join)

    @property
    def requests(self) -> int:
        """Under way or waiting, as seen from outside."""
        return len(self._open)

    def _post(self, message: Callable[[], None]) -> None:
        self._inbox.put(message)

    def _arrive(self, news: Sequence[tuple[Ticket, Event]]) -> None:
        for ticket, event in news:
            if isinstance(event, Ended) or event.round.finish is not None:
                self._open.discard(ticket)
                self._free()
            ticket.events.put((ticket, event))

    def _free(self) -> None:
        now = time.monotonic()
        self._between += _LEARNING * (min(now - self._freed, _LONGEST_WAIT) - self._between)
        self._freed = now

    # ---- the engine's thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._end_all(Ended("shutdown", "the server was shut down"))
        except Exception as error:  # whatever it was, nobody may wait for ever
            log.exception("the engine has failed")
            self.failure = type(error).__name__
            self._end_all(FAILED)
            while not self._stopping:  # whoever handed in a request before knowing
                self._inbox.get()()

    def _turn(self) -> None:
        """What came in, then one step."""
        if not self._tickets:
            self._deliver()
            self.engine.check_integrity()
            self._inbox.get()()
        self._read()
        now = time.monotonic()
        for gone in self.engine.expire(now):
            late = Ended("deadline", "the request took longer than this server lets any take")
            self._deliver([(self._tickets.pop(gone.request.id), late)])
        if now >= self._ends_at:
            self._end_all(Ended("shutdown", "the server is shutting down"))
        shares = self.engine.admission.shares()
        if not shares:
            self._deliver()
            if self._tickets:
                time.sleep(_PATIENCE)
            return
        self._step(shares)

    def _step(self, shares: Sequence[Share]) -> None:
        self.drafts.clear()
        started = time.perf_counter()
        self.engine.step(shares)
        seconds, now = time.perf_counter() - started, time.monotonic()
        news, rounds = list[tuple[Ticket, Event]](), list[Round]()
        for row in (share.row for share in shares):
            ticket = self._tickets.get(row.request.id)
            if ticket is not None and len(row.rounds) > ticket.rounds:
                event = self._progress(ticket, row)
                rounds.append(event.round)
                news.append((ticket, event))
                if event.round.finish is not None:
                    del self._tickets[row.request.id]
        self._metrics.heard(Stepped(rounds, news, sum(share.count for share in shares), seconds, now))
        for ticket, _ in news:
            ticket.last = now
        self._untold = news  # until the next pass begins: now the event loop and the step's beginning would only wait

    def _progress(self, ticket: Ticket, row: Running) -> Progress:
        event = Progress(row.rounds[-1], self.drafts.get(row.request.id, ()), tuple(row.logprobs[ticket.logprobs :]))
        ticket.rounds, ticket.logprobs = len(row.rounds), len(row.logprobs)
        return event

    def _lost(self, gone: GivenUp) -> None:
        self._deliver([(self._tickets.pop(gone.request.id), BROKEN)])

    def _read(self) -> None:
        """Everything in the inbox."""
        while not self._inbox.empty():
            self._inbox.get()()

    def _begin(self, ticket: Ticket) -> None:
        if self.failure is not None:
            self._deliver([(ticket, FAILED)])
            return
        try:
            self.engine.submit(ticket.request)
        except UserError as error:
            self._deliver([(ticket, Ended("refused", str(error)))])
            return
        self._tickets[ticket.request.id] = ticket

    def _give_up(self, request_id: str) -> None:
        self._end(request_id, Ended("cancelled", "the client has gone"))

    def _end_at(self, ends_at: float) -> None:
        self._ends_at = min(self._ends_at, ends_at)

    def _leave(self) -> None:
        self._stopping = True

    def _end(self, request_id: str, ended: Ended) -> None:
        ticket = self._tickets.pop(request_id, None)
        if ticket is not None:
            self.engine.cancel(request_id)
            self._deliver([(ticket, ended)])

    def _end_all(self, ended: Ended) -> None:
        tickets, self._tickets = self._tickets, {}
        for request_id in tickets:
            if self.failure is None:
                self.engine.cancel(request_id)
        self._deliver([(ticket, ended) for ticket in tickets.values()])

    def _deliver(self, news: Sequence[tuple[Ticket, Event]] = ()) -> None:
        """Hand over what the last step brought and is not told yet, and ``news`` behind it."""
        news, self._untold = [*self._untold, *news], []
        for _, event in news:
            if isinstance(event, Ended):
                self._metrics.ended(event)
        if news and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrive, news)
