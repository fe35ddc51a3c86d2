"""Closed-loop load: so many users, each of whom asks again as soon as it is answered, and what they saw.

Legend: seconds are of the clock that was given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dspark.decoding.engine import Engine
from dspark.decoding.ledger import Ledger
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


@dataclass(frozen=True)
class Traffic:
    """What users ask in turn: ``before`` anything is counted, so that they do not ask all at once ever after; the
    ``requests`` that are measured; and ``after`` these, so that their number stays what it is until all are answered.
    """

    before: Sequence[Request]
    requests: Sequence[Request]
    after: Sequence[Request]


def closed_loop(engine: Engine, traffic: Traffic, clock: Clock) -> Run:
    """As many users as the engine has slots, who ask when a slot is theirs.

    Counted is from when the first measured request begins until the last one is answered, with all that others have
    written meanwhile.
    """
    run, asked, first = Run(), dict[str, float](), dict[str, float]()
    wanted = {request.id for request in traffic.requests}
    for request in (*traffic.before, *traffic.requests, *traffic.after):
        engine.submit(request)
    begun: _Begun | None = None
    before = clock()
    while wanted:
        shares = engine.admission.shares()
        for share in shares:
            asked.setdefault(share.row.request.id, before)
        if begun is None and not wanted.isdisjoint(asked):
            begun = _Begun.now(engine, before)
        written = sum(share.row.written for share in shares)
        done = engine.step(shares)
        now = clock()
        for share in shares:
            if share.row.rounds:
                first.setdefault(share.row.request.id, now)
        if begun is not None:
            run.steps += 1
            run.tokens += sum(share.row.written for share in shares) - written
        for each in (each for each in done if each.request.id in wanted):
            wanted.remove(each.request.id)
            run.visits.append(Visit(asked[each.request.id], first[each.request.id], now, each))
        before = now
    assert begun is not None, "somebody was answered"
    begun.over(engine, run, before)
    for request in traffic.after:
        engine.cancel(request.id)
    return run


@dataclass(frozen=True)
class _Begun:
    """What had been when counting began."""

    at: float
    laps: dict[str, float]
    ledger: dict[str, float]

    @classmethod
    def now(cls, engine: Engine, at: float) -> _Begun:
        ledger = _ledger(engine)
        return cls(at, dict(engine.laps.seconds), asdict(ledger) if ledger else {})

    def over(self, engine: Engine, run: Run, at: float) -> None:
        run.seconds = at - self.at
        run.laps = {name: taken - self.laps.get(name, 0.0) for name, taken in engine.laps.seconds.items()}
        ledger = _ledger(engine)
        if ledger is not None:
            run.ledger = ledger.since(self.ledger)


def _ledger(engine: Engine) -> Ledger | None:
    """What its planner has decided, up to the last step; None where it keeps no account."""
    if not isinstance(engine.planner, Together):
        return None
    engine.planner.make_up()
    return engine.planner.ledger


def texts(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Output ids by request, of runs that answered each once."""
    return {visit.completion.request.id: visit.completion.output_ids for run in runs for visit in run.visits}
