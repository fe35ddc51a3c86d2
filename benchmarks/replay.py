"""Planners on recorded rounds and a measured cost model: what each would have gained, without a clock's noise.

dspark calibrate --prompts TRAIN.jsonl --judge PROMPTS.jsonl --rounds rounds.npz --out calibration.json
dspark profile --out cost.json
python benchmarks/replay.py --rounds rounds.npz --cost cost.json --json FILE [--forms price] [--longest 0.25]

``--cost flat`` prices a machine on which tokens are nearly free up to hundreds of them, as they are on accelerators;
``--longest`` replays that share of the prompts alone whose rounds stood longest, as if the drafter were better.
Confidence is read through the logistic map of the rounds that were fitted to, which goes on learning from the rounds
that judge as they are replayed, and each request's own rounds tilt it: as ``speculation.together`` reads it.
So many requests at a time take up the rounds of the recorded prompts, one prompt after another; a round that verifies
l of its drafts gains 1 + min(l, accepted) tokens and takes what the model says. Which round follows does not depend on
what was kept, which in truth it does: a shorter round is followed by one that begins earlier in the same text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, cycle
from operator import mul
from pathlib import Path

import numpy as np

from dspark.calibration.fits import fit_logistic
from dspark.calibration.record import Recorded
from dspark.decoding.planners import HOLDS, lengths_of
from dspark.foundation.artifacts import read_json, write_json
from dspark.speculation.confidence import Logistic
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.planner.guard import Guard
from dspark.speculation.planner.plan import Present
from dspark.speculation.planner.scheduler import Form, Memory, Scheduler
from dspark.speculation.recalibration import Outcome, Recalibration
from dspark.speculation.rows import Counts, Numbers
from dspark.speculation.sampling import Sampling

_CONTEXT = 256
_REQUESTS = (1, 2, 4, 8, 16, 32, 64)
_REGIME = (Sampling(), "drafter")  # whatever it was, all rounds have the same
FORMS: dict[str, tuple[Form, int, Guard | None]] = {
    "price": ("price", 1, Guard()),
    "averaged": ("averaged", 2, Guard()),
    "literal": ("literal", 2, Guard()),
    "literal, never resting": ("literal", 2, None),
    "algorithm 1": ("algorithm 1", 1, Guard()),
}
# A plain step is 1; of 256 tokens it takes 1.6, and a draft of one token takes 0.08, of 256 tokens 0.13.
FLAT = CostModel((1, 256), (1, 256), (1.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.08, 0.05, 0.0, 0.0))


@dataclass(frozen=True)
class Trace:
    """Whole rounds and how their confidence is read before any of them is over."""

    rounds: Recorded
    fitted: Logistic

    @property
    def block(self) -> int:
        """K."""
        return self.rounds.outcomes.block

    @property
    def accepted(self) -> Counts:
        """Drafts ``[N]`` of each round."""
        return self.rounds.outcomes.accepted

    def prompts(self) -> Iterator[Counts]:
        """Numbers of each prompt's rounds, again and again, in an order of their own."""
        names = np.random.default_rng(0).permutation(np.unique(self.rounds.prompt))
        return cycle([np.flatnonzero(self.rounds.prompt == name) for name in names])

    @property
    def sampled(self) -> bool:
        """Whether its tokens were drawn: chances between 0 and 1 are none of a greedy draft."""
        return bool(((self.rounds.oracle > 0) & (self.rounds.oracle < 1)).any())

    def longest(self, share: float) -> Trace:
        """Of that share of the prompts alone whose rounds stood longest."""
        names, which = np.unique(self.rounds.prompt, return_inverse=True)
        stood = np.bincount(which, self.accepted) / np.bincount(which)
        kept = np.argsort(-stood)[: max(1, round(share * len(names)))]
        return Trace(self.rounds.at(np.isin(which, kept)), self.fitted)


class Streams:
    """Requests that take up one prompt after another."""

    def __init__(self, trace: Trace, requests: int) -> None:
        self._prompts = trace.prompts()
        self._left = [next(self._prompts) for _ in range(requests)]

    def next_rounds(self) -> tuple[Counts, Counts]:
        """The round of each request, and the slots where it is the last of its prompt."""
        numbers = np.array([left[0] for left in self._left])
        self._left = [left[1:] for left in self._left]
        ended = [slot for slot, left in enumerate(self._left) if not len(left)]
        for slot in ended:
            self._left[slot] = next(self._prompts)
        return numbers, np.array(ended, dtype=np.int64)


def costs_of(model: CostModel, requests: int, drafted: int, drafts: int, sampled: bool = False) -> Numbers:
    """Seconds of steps that verify 0..``drafts`` drafts where ``drafted`` tokens are drafted."""
    context, laws = requests * _CONTEXT, (requests, drafted) if sampled else (0, 0)
    return model.rounds(Load(requests, requests, context, context, drafted, drafted * _CONTEXT, *laws), drafts)


@dataclass
class Gained:
    """What steps yielded and took."""

    requests: int
    tokens: int = 0
    seconds: float = 0.0
    verified: int = 0
    drafted: int = 0
    steps: int = 0

    def step(self, lengths: Counts, accepted: Counts, drafting: int, seconds: Numbers) -> None:
        """One more; ``seconds`` by the number of drafts that are verified."""
        self.tokens += self.requests + int(np.minimum(lengths, accepted).sum())
        self.seconds += float(seconds[lengths.sum()])
        self.verified += int(lengths.sum())
        self.drafted += drafting
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """Tokens a second and, by round, tokens, verified drafts and how many drafted."""
        rounds = self.steps * self.requests
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "tau": self.tokens / rounds,
            "verified": self.verified / rounds,
            "drafting": self.drafted / rounds,
        }


def replay(trace: Trace, model: CostModel, requests: int, plan: Scheduler | int | None) -> dict[str, float]:
    """So many requests planned, at a fixed length, or without drafts (None)."""
    streams, steps = Streams(trace, requests), max(1, len(trace.accepted) // requests)
    most = requests * trace.block
    costs = cache(lambda drafted: costs_of(model, requests, drafted, most, trace.sampled))
    slots, gained = np.arange(requests), Gained(requests)
    if not isinstance(plan, Scheduler):
        drafting, lengths = (0, 0) if plan is None else (requests, plan)
        for _ in range(steps):
            rounds, _ = streams.next_rounds()
            seconds = costs(drafting * (plan or 0))  # blocks of that length
            gained.step(np.full(requests, lengths), trace.accepted[rounds], drafting, seconds)
        return gained.figures()
    memory = plan.begin(requests, trace.block, {_REGIME: Recalibration.begin(trace.fitted)})
    for _ in range(steps):
        rounds, ended = streams.next_rounds()
        asked, memory = plan.drafts(memory, slots)
        drafted = len(asked) * memory.asks
        memory, lengths = _planned(plan, memory, trace, rounds, asked, ended)
        gained.step(lengths, trace.accepted[rounds], len(asked), costs(drafted))
    return gained.figures()


def _planned(
    plan: Scheduler, memory: Memory, trace: Trace, rounds: Counts, asked: Counts, ended: Counts
) -> tuple[Memory, Counts]:
    """A step in which ``asked`` slots draft, as ``speculation.together`` plans it, and its lengths."""
    slots = np.arange(len(rounds))
    logits, peaks = trace.rounds.outcomes.logits[rounds], trace.rounds.outcomes.peaks[rounds]
    believed = memory.learned[_REGIME].map.conditional(logits, peaks).tolist()
    drafted = np.where(np.isin(slots, asked), memory.asks, 0).tolist()
    each = zip(memory.tilts, believed, drafted, strict=True)
    present = Present.of([accumulate(tilt.tilted(chances[:count]), mul) for tilt, chances, count in each])
    lengths = np.array(plan.plan(memory, present, slots).lengths)
    stood, observed = (np.minimum(lengths, trace.accepted[rounds] + i) for i in (0, 1))
    known = zip(memory.tilts, believed, observed.tolist(), stood.tolist(), strict=True)
    tilts = [tilt.after(each, seen, n) for tilt, each, seen, n in known]
    outcomes = [Outcome(logits[i], peaks[i], observed[i], stood[i]) for i in asked.tolist()]
    return plan.after(memory, present, slots, ended, {_REGIME: outcomes} if len(asked) else {}, tilts), lengths


def main() -> None:
    """Print and write tokens a second relative to the best fixed length in hindsight."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=Path, required=True)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--longest", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recorded, judged = Recorded.load(options.rounds)
    trace = Trace(recorded.at(judged), fit_logistic(recorded.at(~judged).outcomes)).longest(options.longest)
    model = FLAT if str(options.cost) == "flat" else CostModel.of(read_json(options.cost), str(options.cost))
    rows = [_row(trace, model, requests, options.forms.split(",")) for requests in _REQUESTS]
    if options.json:
        write_json(options.json, {"rounds": len(trace.rounds), "rows": rows})


def _row(trace: Trace, model: CostModel, requests: int, forms: Sequence[str]) -> dict[str, object]:
    fixed = {str(n): replay(trace, model, requests, n) for n in range(1, trace.block + 1)}
    fixed["off"] = replay(trace, model, requests, None)
    best = max(fixed, key=lambda name: fixed[name]["tokens_per_second"])
    top = fixed[best]["tokens_per_second"]
    planned = {}
    for name in forms:
        form, delay, guard = FORMS[name]
        scheduler = Scheduler(
            lambda count, drafted, drafts: costs_of(model, count, drafted, drafts, trace.sampled),
            form,
            delay,
            guard,
            lengths=lengths_of(trace.block),
            holds=HOLDS if form == "price" else 1,
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
