"""How well the cost model foretells steps that it was not fitted to, and how long its measurement takes.

    python benchmarks/cost_model.py [--requests 64] [--context 1024] [--memory-gb 8] [--checks 120] [--json FILE]

Steps of any number of requests, verified lengths and contexts between those of the grid are timed in turn with it, so
that what else the machine does is in both; steps on shorter contexts than any fitted to come behind. Nothing else
should run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dspark.cli.pair import load_drafting
from dspark.decoding.costs import Contexts, Setting, check_settings, fit_costs, settings_of, time_steps
from dspark.foundation.artifacts import write_json
from dspark.speculation.cost import Load

_BOUNDS = {"requests": (1, 4, 16, 65), "drafts": (-1, 0, 2, 5, 99), "context": (0, 200, 500, 9999)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--drafter", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    parser.add_argument("--checks", type=int, default=120)
    parser.add_argument("--shorter", type=int, default=64, help="contexts below those fitted to, judged behind them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    target, drafter = load_drafting(options.target, options.drafter, options.dtype, "auto")
    block, positions = drafter.config.block_size, int(options.memory_gb * 1e9 / target.new_cache(1, 1).bytes)
    contexts = Contexts.of(options.context, target.max_positions, options.requests, positions)
    assert contexts is not None, "more --memory-gb is needed"
    grid = settings_of(block, options.requests, contexts)
    started = time.perf_counter()
    time_steps(target, drafter, grid, contexts)
    alone = time.perf_counter() - started
    checks = check_settings(block, options.requests, contexts, options.checks)
    steps = time_steps(target, drafter, [*grid, *checks], contexts)
    model = fit_costs(steps[: len(grid)], target.sizes)
    judged = steps[len(grid) :]
    nearer = check_settings(block, options.requests, contexts, options.checks // 2, seed=1)
    shorter = time_steps(target, drafter, nearer, replace(contexts, near=options.shorter))
    errors = np.array([model.seconds(load) / seconds - 1 for load, seconds in judged])
    found = {
        "weights": target.weights,
        "contexts": [contexts.near, contexts.far, contexts.most_far],
        "settings": len(grid),
        "seconds": alone,
        "all": _figures(errors),
        "fitted": _figures(np.array([model.seconds(load) / seconds - 1 for load, seconds in steps[: len(grid)]])),
        f"contexts from {options.shorter}": _figures(
            np.array([model.seconds(load) / seconds - 1 for load, seconds in shorter])
        ),
    } | {name: _by(bounds, _SIZES[name], checks, judged, errors) for name, bounds in _BOUNDS.items()}
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        write_json(options.json, found | {"model": model.asdict()})


_SIZES: dict[str, Callable[[Setting, Load], float]] = {
    "requests": lambda setting, load: setting.requests,
    "drafts": lambda setting, load: -1 if setting.length is None else setting.length,
    "context": lambda setting, load: load.context / load.requests,
}


def _by(
    bounds: Sequence[int],
    size: Callable[[Setting, Load], float],
    checks: Sequence[Setting],
    judged: Sequence[tuple[Load, float]],
    errors: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Errors of the steps from each bound to the next."""
    sizes = np.array([size(setting, load) for setting, (load, _) in zip(checks, judged, strict=True)])
    inside = {f"{low}..{high - 1}": (sizes >= low) & (sizes < high) for low, high in itertools.pairwise(bounds)}
    return {name: _figures(errors[rows]) for name, rows in inside.items() if rows.any()}


def _figures(errors: np.ndarray) -> dict[str, float]:
    size = np.abs(errors)
    quantiles = {"median": np.median(size), "nine in ten": np.quantile(size, 0.9), "bias": np.median(errors)}
    return {"steps": len(errors)} | {name: round(float(value), 3) for name, value in quantiles.items()}


if __name__ == "__main__":
    main()
