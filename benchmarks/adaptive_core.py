"""Many requests on the core: without drafts, each planned by itself, and all planned together.

    python benchmarks/adaptive_core.py --prompts FILE... [--requests 1 4 16 64] [--temperature T] [--json FILE]

So many requests are always under way, a new one for each that is answered, until all prompts of a turn are. The ways
take turns on the same prompts and draws; ratios are of tokens a second, turn by turn. Nothing else should run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from dspark.cli.pair import Pair, load_pair
from dspark.data.prompts import read_in_turn
from dspark.decoding.costs import Contexts, fit_costs, settings_of, time_steps
from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Request
from dspark.foundation.artifacts import write_json
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.cost import CostModel
from dspark.speculation.sampling import Sampling


def measured_costs(pair: Pair, most: int, draft_slots: int | None) -> CostModel:
    """Of steps of up to ``most`` requests, with up to half a gigabyte of caches for every ten."""
    drafter = pair.decoder.drafter
    assert drafter is not None
    position = pair.target.new_cache(1, 1).bytes
    contexts = Contexts.of(512, pair.target.max_positions, most, int((1 + most / 20) * 1e9 / position))
    assert contexts is not None
    grid = settings_of(draft_slots or drafter.config.block_size, most, contexts)
    return fit_costs(time_steps(pair.target, drafter, grid, contexts, draft_slots))


def turn(pair: Pair, way: str, requests: list[Request], slots: int, adaptive: Adaptive) -> dict[str, float]:
    """All ``requests`` answered, ``slots`` at a time."""
    decoder = pair.decoder
    longest = max(len(each.prompt_ids) + each.max_tokens for each in requests)
    engine = Engine(
        pair.target,
        requests,
        Limits(slots, slots * (longest + 2 * BLOCK)),
        "plain" if way == "off" else "dspark",
        decoder.drafter,
        greedy=decoder.greedy,
        sampled=decoder.sampled,
        adaptive=adaptive if way == "together" else None,
    )
    tally = RoundTally()
    started = time.perf_counter()
    for answer in engine.run():
        tally.extend(answer.rounds)
    seconds = time.perf_counter() - started
    kept = engine._planner.costs if isinstance(engine._planner, Together) else None
    scale = kept.seconds(engine.load) / adaptive.costs.seconds(engine.load) if kept else 1.0
    return {"tokens_per_second": (tally.tokens + tally.prompts) / seconds, "tau": tally.tau, "refined": scale}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--limit", type=int, default=24, help="prompts of a turn, at least the requests under way")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pair = load_pair(dtype=options.dtype)
    most = max(options.requests)
    slots = pair.decoder.greedy.draft_slots
    calibrations = pair.decoder.greedy.calibrations
    adaptive = Adaptive(measured_costs(pair, most, slots), calibrations, draft_slots=slots)
    prompts = read_in_turn(options.prompts, options.turns * max(most, options.limit))
    ids = [pair.target.chat.prompt_ids(each.first_messages()) for each in prompts]
    sampling, rows = Sampling(options.temperature), []
    for count in options.requests:
        found: dict[str, list[dict[str, float]]] = {"off": [], "apart": [], "together": []}
        size = max(count, options.limit)
        for number in range(options.turns):
            some = ids[number * size : (number + 1) * size]
            requests = [Request(f"{i}", each, sampling, i, options.tokens) for i, each in enumerate(some)]
            for way, turns in found.items():
                turns.append(turn(pair, way, requests, count, adaptive))
        rows.append(_row(count, found))
        print(rows[-1], flush=True)
    if options.json:
        write_json(options.json, {"rows": rows, "draft_slots": slots, "costs": adaptive.costs.asdict()})


def _row(count: int, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios over plain decoding, turn by turn."""
    row: dict[str, Any] = {"requests": count}
    for way, turns in found.items():
        pairs = zip(turns, found["off"], strict=True)
        ratios = [each["tokens_per_second"] / off["tokens_per_second"] for each, off in pairs]
        row[way] = {
            "ratio": [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))],
            "tokens_per_second": round(statistics.median(each["tokens_per_second"] for each in turns), 1),
            "tau": round(statistics.fmean(each["tau"] for each in turns), 2),
            "refined": round(turns[-1]["refined"], 2),
        }
    return row


if __name__ == "__main__":
    main()
