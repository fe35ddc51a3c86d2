"""How much faster a user is served at the same throughput: one mode against another, along their frontiers (Fig. 7).

    python benchmarks/matched_throughput.py run.json ... [--mode adaptive] [--over fixed1]

reads rows of ``dspark bench --json``, or of ``benchmarks/replay.py --json`` (whose seconds are a cost model's, so that
the same drafts can be priced as another machine would). A load at which another serves more tokens and users faster
is no part of a frontier; between two loads it is a straight line in logarithms.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dspark.foundation.artifacts import read_json

Frontier = dict[str, list[tuple[float, float]]]  # by mode: tokens a second of all users, and of one


def frontier_of(stored: dict[str, Any]) -> Frontier:
    """Points of each mode, by load."""
    points: Frontier = defaultdict(list)
    for row in stored["rows"]:
        if "mode" in row:
            points[row["mode"]].append((row["throughput_tok_s"], row["per_user_tok_s"]))
            continue
        named = {f"fixed{name}" if name.isdecimal() else name: each for name, each in row["fixed"].items()}
        for mode, each in {**named, "adaptive": row["planned"]["price"]}.items():
            total = each["tokens_per_second"]
            points[mode].append((total, total / row["requests"]))
    return points


def gains(points: Frontier, mode: str, over: str) -> list[tuple[float, float]]:
    """``(throughput, gain in a user's speed)`` at every load of ``over`` whose throughput ``mode`` reaches as well."""
    throughput, speed = (np.log(np.array(each)) for each in zip(*_best(points[mode]), strict=True))
    found = []
    for total, own in _best(points[over]):
        if throughput[0] <= np.log(total) <= throughput[-1]:
            found.append((total, float(np.exp(np.interp(np.log(total), throughput, speed))) / own - 1))
    return found


def _best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both."""
    return sorted(each for each in points if not any(a > each[0] and b > each[1] for a, b in points))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--mode", default="adaptive")
    parser.add_argument("--over", default="fixed1")
    options = parser.parse_args(arguments)
    points: Frontier = defaultdict(list)
    for run in options.runs:
        for mode, each in frontier_of(read_json(run)).items():
            points[mode] += each
    for total, gain in sorted(gains(points, options.mode, options.over)):
        print(
            f"{total:8.1f} tokens a second: {options.mode} serves a user {100 * gain:+.0f} % faster than {options.over}"
        )


if __name__ == "__main__":
    main()
