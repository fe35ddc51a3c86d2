"""Modes measured in turn under the same load: the same prompts, the same draws, one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive
from dspark.decoding.request import Request
from dspark.drafters.drafter import Drafter
from dspark.foundation.garbage import what_is_loaded_stays
from dspark.load.closed import Clock, Run, Traffic, closed_loop
from dspark.targets.model import Target

WARM_UP_TOKENS = 16

# (name of the mode, number of the turn, what came of it), as soon as it is there
Heard = Callable[[str, int, Run], None]


@dataclass(frozen=True)
class Interleaved:
    """``modes`` of one target and its drafter; ``adaptive``: how that mode plans, if it is one of them."""

    target: Target
    drafter: Drafter | None
    modes: Sequence[Speculation]
    adaptive: Adaptive | None
    clock: Clock
    spans: dict[str, list[tuple[str, float, float]]] | None = None
    """Where each piece of every step is noted by mode, None for nowhere."""

    def measure(self, users: int, turns: Sequence[Sequence[Request]], heard: Heard) -> None:
        """So many users; every turn's requests but the last one's are answered in each mode once, whose order changes
        turn by turn. What users ask before and after is the next turn's, so that no run finds a measured prompt read.

        Each mode has one engine for all turns, as a server has.
        """
        longest = max(len(each.prompt_ids) + each.max_tokens for requests in turns for each in requests)
        limits = Limits(users, users * (longest + 2 * BLOCK))
        with what_is_loaded_stays():  # and the caches of other numbers of users do not
            engines = self._engines(users, limits)
            for engine in engines.values():
                few = [replace(each, max_tokens=min(each.max_tokens, WARM_UP_TOKENS)) for each in turns[0][:users]]
                self._run(engine, Traffic((), few, ()))
            for number, (requests, others) in enumerate(pairwise(turns)):
                first = number % len(self.modes)
                traffic = Traffic(_staggered(others[:users]), requests, _named("after", others))
                for mode in (*self.modes[first:], *self.modes[:first]):
                    heard(mode.name, number, self._run(engines[mode.name], traffic))

    def _engines(self, users: int, limits: Limits) -> dict[str, Engine]:
        block = self.drafter.config.block_size if self.drafter else 0
        engines: dict[str, Engine] = {}
        for mode in self.modes:
            planner = mode.planner(self.adaptive, users, block)
            engines[mode.name] = mode.engine(self.target, self.drafter, (), limits, planner)
            if self.spans is not None:
                engines[mode.name].laps.spans = self.spans.setdefault(mode.name, [])
        return engines

    def _run(self, engine: Engine, traffic: Traffic) -> Run:
        engine.pool.forget()
        run = closed_loop(engine, traffic, self.clock)
        engine.check_integrity()
        return run


def _staggered(requests: Sequence[Request]) -> list[Request]:
    """A first request for each user, one shorter than the other: equal ones would be answered in lockstep for ever."""
    count = len(requests)
    shorter = [replace(each, max_tokens=-(-each.max_tokens * (i + 1) // count)) for i, each in enumerate(requests)]
    return _named("before", shorter)


def _named(name: str, requests: Sequence[Request]) -> list[Request]:
    return [replace(each, id=f"{name} {i}") for i, each in enumerate(requests)]
