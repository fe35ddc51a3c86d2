"""What planning a step costs: every form, for numbers of requests that share it, on one thread.

python benchmarks/planner.py --json FILE
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dspark.foundation.artifacts import write_json
from dspark.speculation.planner.algorithm import early_stopped
from dspark.speculation.planner.budget import admit, capacity
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import Present
from dspark.speculation.planner.price import Prices, worth_their_price

_BLOCK, _WARM_UP, _REPEATS = 7, 20, 500


def main() -> None:
    """Print microseconds a call, medians, and write them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [_row(requests) for requests in (1, 4, 16, 64, 256)]
    names = list(rows[0])
    print(" ".join(f"{name:>14}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]:14.0f}" for name in names))
    if options.json:
        write_json(options.json, {"block": _BLOCK, "repeats": _REPEATS, "microseconds": rows})


def _row(requests: int) -> dict[str, float]:
    numbers = np.random.default_rng(requests)
    survival = numbers.uniform(0.3, 1.0, (requests, _BLOCK)).cumprod(axis=1).tolist()
    present = Present.of(survival)
    tokens = requests + np.arange(requests * _BLOCK + 1)
    seconds = np.interp(tokens, [1, 8, 16, 64, 2048], [8e-3, 9e-3, 12e-3, 30e-3, 0.6])
    slots = np.arange(requests)
    past = Past.nothing(requests, _BLOCK).after(present, slots)
    budget = capacity(past, slots, seconds)
    return {
        "requests": requests,
        "algorithm 1": _microseconds(lambda: early_stopped(present, seconds)),
        "capacity": _microseconds(lambda: capacity(past, slots, seconds)),
        "admit": _microseconds(lambda: admit(present, budget)),
        "price": _microseconds(lambda: worth_their_price(present, budget.rate, Prices.of(seconds))),
        "present": _microseconds(lambda: Present.of(survival)),
        "past": _microseconds(lambda: past.after(present, slots)),
    }


def _microseconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(_WARM_UP + _REPEATS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[_WARM_UP:]) * 1e6


if __name__ == "__main__":
    main()
