"""Requests that come and go for minutes on a cache that is too small for them: nothing leaks, nobody starves.

    python benchmarks/soak.py --prompts FILE... [--minutes 10] [--cache-tokens 3000] [--json FILE]

Requests arrive at random, in bursts, greedy and sampled, of three priorities, some with deadlines, some with wishes;
some are cancelled while they wait or run. Steps are planned together. After every hundred steps the cache must explain
every block, and memory is noted; at the end each greedy answer of those kept is compared with the reference loop's.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dspark.cli.bench import adaptive_of
from dspark.cli.pair import Pair, load_pair
from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.planners import Together
from dspark.decoding.request import Completion, Request
from dspark.decoding.wishes import Wishes
from dspark.foundation.artifacts import write_json
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.sampling import Sampling

_CHECKED = 40  # greedy answers that are compared


@dataclass
class Seen:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    kept: list[Completion] = field(default_factory=list)
    tally: RoundTally = field(default_factory=RoundTally)


def soak(pair: Pair, engine: Engine, ids: list[list[int]], seconds: float, slots: int) -> Seen:
    """Traffic for so long, and then no more until all are answered."""
    numbers, seen, started, number = random.Random(0), Seen(), time.monotonic(), 0
    came: dict[str, float] = {}
    begun: set[str] = set()
    while True:
        now = time.monotonic() - started
        if now < seconds and len(engine.admission.queue) < 3 * slots:
            for _ in range(numbers.choice((0, 0, 0, 1, 1, 4))):
                engine.submit(_request(numbers, number, ids, now))
                came[f"{number}"] = now
                number += 1
        under_way = [row.request.id for row in engine.admission.running]
        waiting = [each.id for each in engine.admission.queue.requests()]
        if numbers.random() < 0.04 and under_way + waiting:
            seen.counts["cancelled"] += engine.cancel(numbers.choice(under_way + waiting)) is not None
        seen.counts["late"] += len(engine.expire(now))
        shares = engine.admission.shares()
        if not shares and now >= seconds:
            break
        for share in shares:
            if share.row.request.id not in begun:
                begun.add(share.row.request.id)
                seen.waited.append(now - came[share.row.request.id])
        for answer in engine.step(shares):
            seen.counts["answered"] += 1
            seen.tally.extend(answer.rounds)
            if answer.request.sampling.greedy and answer.request.wishes is None:
                seen.kept.append(answer)
        seen.counts["steps"] += 1
        if not seen.counts["steps"] % 100:
            engine.check_integrity()
            seen.memory.append(_megabytes())
    seen.counts["requests"] = number
    return seen


def _request(numbers: random.Random, number: int, ids: list[list[int]], now: float) -> Request:
    sampling = numbers.choice((Sampling(), Sampling(), Sampling(1.0), Sampling(0.7, top_p=0.9)))
    request = Request(f"{number}", ids[number % len(ids)], sampling, number, numbers.randint(4, 120))
    wishes = Wishes(presence=0.5, repetition=1.1, min_tokens=4) if number % 7 == 0 else None
    deadline = now + numbers.uniform(1, 20) if number % 5 == 0 else None
    return replace(request, priority=numbers.randint(0, 2), wishes=wishes, deadline=deadline)


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--cache-tokens", type=int, default=1536)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pair = load_pair()
    drafter = pair.decoder.drafter
    assert drafter is not None
    planner = Together(adaptive_of(pair, options.slots), options.slots, drafter.config.block_size)
    limits = Limits(options.slots, options.cache_tokens)
    engine = Engine(pair.target, (), limits, "dspark", drafter, planner=planner)
    prompts = [pair.target.chat.prompt_ids(each.first_messages()) for each in read_in_turn(options.prompts, 400)]
    seen = soak(pair, engine, [each for each in prompts if len(each) < 400], 60 * options.minutes, options.slots)
    checked = seen.kept[:: max(1, len(seen.kept) // _CHECKED)]
    equal = sum(pair.decoder.answer(each.request, "plain").output_ids == each.output_ids for each in checked)
    figures: dict[str, Any] = {
        **seen.counts,
        "preemptions": engine.admission.preemptions,
        "longest_wait_s": max(seen.waited),
        "median_wait_s": sorted(seen.waited)[len(seen.waited) // 2],
        "megabytes": [round(seen.memory[len(seen.memory) * i // 10]) for i in range(10)] + [round(seen.memory[-1])],
        "blocks_free": [engine.pool.available, engine.pool.count],
        "tau": seen.tally.tau,
        "identical": [equal, len(checked)],
    }
    print(figures)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
