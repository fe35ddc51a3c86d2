"""Planners on recorded rounds and a measured cost model: what each would have gained, without a clock's noise.

dspark calibrate --prompts TRAIN.jsonl --judge PROMPTS.jsonl --rounds rounds.npz --out calibration.json
dspark profile --out cost.json
python benchmarks/replay.py --rounds rounds.npz --cost cost.json --json FILE

Confidence is read through the map that is best on the rounds that were fitted to; the rounds that judge are replayed.
So many requests at a time take up the rounds of the recorded prompts, one prompt after another; a round that verifies
l of its drafts gains 1 + min(l, accepted) tokens and takes what the model says. Which round follows does not depend on
what was kept, which in truth it does: a shorter round is followed by one that begins earlier in the same text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np

from dspark.calibration.choose import FITS, best_kind, survival_through
from dspark.calibration.record import Recorded
from dspark.foundation.artifacts import read_json, write_json
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.planner.guard import Guard
from dspark.speculation.planner.plan import Counts, Numbers, Present
from dspark.speculation.planner.scheduler import Form, Memory, Scheduler

_CONTEXT = 256
_REQUESTS = (1, 2, 4, 8, 16, 32, 64)
FORMS: dict[str, tuple[Form, int, Guard | None]] = {
    "price": ("price", 1, Guard()),
    "averaged": ("averaged", 2, Guard()),
    "literal": ("literal", 2, Guard()),
    "literal, never resting": ("literal", 2, None),
    "algorithm 1": ("algorithm 1", 1, Guard()),
}


@dataclass(frozen=True)
class Trace:
    """Survival ``[N, K]`` as it is believed, and accepted drafts ``[N]``, prompt by prompt ``[N]``."""

    survival: Numbers
    accepted: Counts
    prompt: Counts

    @property
    def block(self) -> int:
        """K."""
        return self.survival.shape[1]

    def prompts(self) -> Iterator[Counts]:
        """Numbers of each prompt's rounds, again and again, in an order of their own."""
        names = np.random.default_rng(0).permutation(np.unique(self.prompt))
        return cycle([np.flatnonzero(self.prompt == name) for name in names])


class Streams:
    """Requests that take up one prompt after another."""

    def __init__(self, trace: Trace, requests: int) -> None:
        self._prompts, self._left = trace.prompts(), [np.zeros(0, dtype=np.int64)] * requests

    def next_rounds(self, ended: list[int]) -> Counts:
        """The round of each request; ``ended`` hears the slots whose prompt is another than before."""
        numbers = []
        for slot, left in enumerate(self._left):
            if not len(left):
                left = next(self._prompts)
                ended.append(slot)
            numbers.append(left[0])
            self._left[slot] = left[1:]
        return np.array(numbers)


def costs_of(model: CostModel, requests: int, drafting: bool, block: int, drafts: int) -> Numbers:
    """Seconds of steps that verify 0..``drafts`` drafts."""
    drafted = requests if drafting else 0
    return model.rounds(Load(requests, requests, requests * _CONTEXT, drafted, drafted * block * _CONTEXT), drafts)


def replay(trace: Trace, model: CostModel, requests: int, plan: Scheduler | int | None) -> dict[str, float]:
    """Tokens a second of so many requests: planned, at a fixed length, or without drafts (None)."""
    streams, steps = Streams(trace, requests), max(1, len(trace.accepted) // requests)
    drafted = costs_of(model, requests, True, trace.block, requests * trace.block)
    plain = float(costs_of(model, requests, False, trace.block, 0)[0])
    slots, tokens, seconds, verified, drew = np.arange(requests), 0, 0.0, 0, 0
    memory = plan.begin(requests, trace.block) if isinstance(plan, Scheduler) else None
    for _ in range(steps):
        ended: list[int] = []
        rounds = streams.next_rounds(ended)
        lengths = np.full(requests, plan if isinstance(plan, int) else 0)
        drafting = plan is not None
        if isinstance(plan, Scheduler):
            assert memory is not None
            lengths, drafting, memory = _planned(
                plan, memory, trace.survival[rounds], slots, np.array(ended, dtype=int)
            )
        tokens += requests + int(np.minimum(lengths, trace.accepted[rounds]).sum())
        seconds += float(drafted[lengths.sum()]) if drafting else plain
        verified, drew = verified + int(lengths.sum()), drew + drafting
    return {
        "tokens_per_second": tokens / seconds,
        "tau": tokens / (steps * requests),
        "verified": verified / (steps * requests),
        "drafting": drew / steps,
    }


def _planned(
    scheduler: Scheduler, memory: Memory, survival: Numbers, slots: Counts, begun: Counts
) -> tuple[Counts, bool, Memory]:
    """Lengths of a step; ``begun``: slots whose request is new."""
    if len(begun):
        fresh = tuple(past.without(begun) for past in memory.pasts)
        memory = replace(memory, pasts=fresh)
    drafting, memory = scheduler.drafts(memory, slots)
    block = survival.shape[1]
    present = Present(survival, np.full(len(slots), block if drafting else 0))
    lengths = np.array(scheduler.plan(memory, present, slots).lengths)
    return lengths, drafting, scheduler.after(memory, present, slots, slots[:0])


def main() -> None:
    """Print and write tokens a second relative to the best fixed length in hindsight."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=Path, required=True)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recorded, judged = Recorded.load(options.rounds)
    kind = best_kind(recorded.at(~judged))
    fitted, replayed = FITS[kind](recorded.at(~judged).outcomes), recorded.at(judged)
    trace = Trace(survival_through(fitted, replayed.outcomes), replayed.outcomes.accepted, replayed.prompt)
    model = CostModel.of(read_json(options.cost), str(options.cost))
    rows = [_row(trace, model, requests) for requests in _REQUESTS]
    if options.json:
        write_json(options.json, {"rounds": len(replayed), "map": kind, "rows": rows})


def _row(trace: Trace, model: CostModel, requests: int) -> dict[str, object]:
    fixed = {str(n): replay(trace, model, requests, n) for n in range(1, trace.block + 1)}
    fixed["off"] = replay(trace, model, requests, None)
    best = max(fixed, key=lambda name: fixed[name]["tokens_per_second"])
    top = fixed[best]["tokens_per_second"]
    planned = {}
    for name, (form, delay, guard) in FORMS.items():
        scheduler = Scheduler(
            lambda count, drafts: costs_of(model, count, True, trace.block, drafts),
            lambda count: float(costs_of(model, count, False, trace.block, 0)[0]),
            form,
            delay,
            guard,
        )
        planned[name] = replay(trace, model, requests, scheduler)
    ratios = " ".join(
        f"{name} {each['tokens_per_second'] / top:.3f} ({each['verified']:.2f})" for name, each in planned.items()
    )
    off = fixed["off"]["tokens_per_second"]
    print(f"{requests:3} requests: best fixed {best} ({top / off:.2f} of off); {ratios}", flush=True)
    return {"requests": requests, "best": best, "fixed": fixed, "planned": planned}


if __name__ == "__main__":
    main()
