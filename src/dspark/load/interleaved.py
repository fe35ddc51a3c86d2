"""Modes measured in turn under the same load: the same prompts, the same draws, one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dspark.decoding.engine import BLOCK, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive, StepPlanner
from dspark.decoding.request import Request
from dspark.drafters.dspark import DSparkDrafter
from dspark.load.closed import Clock, Run, closed_loop
from dspark.targets.model import Target

WARM_UP_TOKENS = 16

# (name of the mode, number of the turn, what came of it), as soon as it is there
Heard = Callable[[str, int, Run], None]


@dataclass(frozen=True)
class Interleaved:
    """``modes`` of one target and its drafter; ``adaptive``: how that mode plans, if it is one of them."""

    target: Target
    drafter: DSparkDrafter | None
    modes: Sequence[Speculation]
    adaptive: Adaptive | None
    clock: Clock

    def measure(self, users: int, turns: Sequence[Sequence[Request]], heard: Heard) -> None:
        """So many users; every turn's requests are answered in each mode once, whose order changes turn by turn.

        An engine is new in each run (so that no prompt is found read), what plans its steps goes on learning.
        """
        block = self.drafter.config.block_size if self.drafter else 0
        planners = {mode.name: mode.planner(self.adaptive, users, block) for mode in self.modes}
        for mode in self.modes:
            few = [replace(each, max_tokens=min(each.max_tokens, WARM_UP_TOKENS)) for each in turns[0][:users]]
            self._run(mode, users, few, planners[mode.name])
        for number, requests in enumerate(turns):
            first = number % len(self.modes)
            for mode in (*self.modes[first:], *self.modes[:first]):
                heard(mode.name, number, self._run(mode, users, requests, planners[mode.name]))

    def _run(self, mode: Speculation, users: int, requests: Sequence[Request], planner: StepPlanner | None) -> Run:
        longest = max(len(each.prompt_ids) + each.max_tokens for each in requests)
        limits = Limits(users, users * (longest + 2 * BLOCK))
        engine = mode.engine(self.target, self.drafter, requests, limits, planner)
        gc.collect()  # the caches of the run before
        run = closed_loop(engine, self.clock)
        engine.pool.check_integrity([])
        return run
