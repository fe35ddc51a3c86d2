"""Closed-loop load: so many users, each of whom asks again as soon as it is answered, and what they saw.

Legend: seconds are of the clock that was given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dspark.decoding.engine import Engine
from dspark.decoding.planners import Together
from dspark.decoding.request import Completion, Request
from dspark.speculation.acceptance import RoundTally

Clock = Callable[[], float]
# Laps that are nobody's forward pass: what planning takes, and what everything around the models takes.
_PLANNING, _BOOKKEEPING = "plan", "bookkeeping"


@dataclass(frozen=True)
class Visit:
    """One answered request: when its user asked, when the first token came and when the last."""

    asked: float
    first: float
    last: float
    completion: Completion

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return len(self.completion.output_ids)


@dataclass
class Run:
    """A whole load on one engine: ``seconds`` from the first question to the last answer, the work they went to
    (``laps``) and the ``tokens`` written meanwhile; ``ledger``: what a planner of all requests decided,
    nothing where there is none.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    visits: list[Visit] = field(default_factory=list)
    laps: dict[str, float] = field(default_factory=dict)
    ledger: dict[str, float] = field(default_factory=dict)

    @property
    def throughput(self) -> float:
        """Tokens a second of all users together."""
        return self.tokens / self.seconds

    @property
    def per_user(self) -> float:
        """Tokens a second that a user saw come, from the first token on, pooled over all answers; NaN where none had
        a second token.
        """
        later = sum(visit.tokens - 1 for visit in self.visits)
        waited = sum(visit.last - visit.first for visit in self.visits)
        return later / waited if waited else float("nan")

    @property
    def tally(self) -> RoundTally:
        """Of all rounds."""
        tally = RoundTally()
        for visit in self.visits:
            tally.extend(visit.completion.rounds)
        return tally

    def figures(self) -> dict[str, Any]:
        """What is kept of a run: times in milliseconds, lengths a round (without the target's own token)."""
        tally = self.tally
        rounds = max(1, tally.rounds)
        return {
            "throughput_tok_s": self.throughput,
            "per_user_tok_s": self.per_user,
            "tau": tally.tau,
            "verify_len": tally.verified / rounds,
            "draft_len": tally.drafted / rounds,
            "accepted": tally.accepted,
            "ttft_ms": 1000 * statistics.median(visit.first - visit.asked for visit in self.visits),
            "planner_ms": 1000 * self.laps.get(_PLANNING, 0.0) / self.steps,
            "bookkeeping_ms": 1000 * self.laps.get(_BOOKKEEPING, 0.0) / self.steps,
            "step_ms": 1000 * self.seconds / self.steps,
            "requests": len(self.visits),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "planner": self.ledger,
        }


def closed_loop(engine: Engine, requests: Sequence[Request], further: Sequence[Request], clock: Clock) -> Run:
    """Answer all ``requests``; as many users as the engine has slots, who ask when a slot is theirs.

    Users who have nothing left to ask ask ``further`` until all are answered, so that their number stays what it is to
    the end (modes differ in how many are answered at once); these count in throughput, as far as they came.
    """
    run, asked, first = Run(), dict[str, float](), dict[str, float]()
    wanted = {request.id for request in requests}
    for request in (*requests, *further):
        engine.submit(request)
    laps = dict(engine.laps.seconds)
    ledger = engine.planner.ledger if isinstance(engine.planner, Together) else None
    before_it = asdict(ledger) if ledger else {}
    started = before = clock()
    while wanted:
        shares = engine.admission.shares()
        for share in shares:
            asked.setdefault(share.row.request.id, before)
        run.tokens -= sum(share.row.written for share in shares)
        done = engine.step(shares)
        now = clock()
        run.tokens += sum(share.row.written for share in shares)
        for share in shares:
            if share.row.rounds:
                first.setdefault(share.row.request.id, now)
        for each in done:
            if each.request.id in wanted:
                wanted.remove(each.request.id)
                run.visits.append(Visit(asked[each.request.id], first[each.request.id], now, each))
        run.steps += 1
        before = now
    run.seconds = clock() - started
    for request in further:
        engine.cancel(request.id)
    run.laps = {name: taken - laps.get(name, 0.0) for name, taken in engine.laps.seconds.items()}
    run.ledger = ledger.since(before_it) if ledger else {}
    return run


def texts(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Output ids by request, of runs that answered each once."""
    return {visit.completion.request.id: visit.completion.output_ids for run in runs for visit in run.visits}
