"""Where a step's time goes: plain and speculative, at 1, 8 and 32 requests, with our kernels and with PyTorch's.

    python benchmarks/pieces.py [--requests 1,8,32] [--context 256] [--repeats 20] [--json FILE]

"PyTorch's kernels" is how everything ran before kernels of our own were compiled, and still runs where none can be;
both are measured in one run, in turn. Pieces inside the target's pass are timed by themselves and taken off the
whole; what is left is called Python. Refuses to run on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dspark.cli.pair import Pair, load_pair
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.laps import Laps
from dspark.decoding.modes import Mode
from dspark.decoding.request import Request
from dspark.kernels import machine
from dspark.kernels.program import Program
from dspark.nn import block_attention
from dspark.nn.packed import PackedLinear, PanelLinear
from dspark.nn.stack import Stack
from dspark.speculation.sampling import Sampling
from dspark.targets import lean
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch

# The calls of a layer in a program: which are products, which attention; the others lie between.
PARTS = {"weights": (1, 4, 6, 8), "attention": (3,), "between": (0, 2, 5, 7)}
DRAFT = ("lookup", "draft", "draft, parallel", "draft, sequential", "features")


@contextmanager
def pytorch_kernels() -> Iterator[None]:
    """As on a machine for which none can be compiled."""
    with mock.patch.object(machine, "_NEEDED", {}):
        machine.can_compile.cache_clear()
        try:
            yield
        finally:
            machine.can_compile.cache_clear()


class Watch:
    """Seconds inside some functions, by name, while the target's pass runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._in_pass = False

    def over(self, name: str, function: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                if always or self._in_pass:
                    self.seconds[name] += time.perf_counter() - started

        return timed

    def during(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as the target's pass."""

        def watched(*arguments: Any, **named: Any) -> Any:
            self._in_pass = True
            try:
                return function(*arguments, **named)
            finally:
                self._in_pass = False

        return watched


@contextmanager
def watched() -> Iterator[Watch]:
    """Times products and attention of the target where they are modules, and its head everywhere."""
    watch = Watch()
    with (
        mock.patch.object(PackedLinear, "forward", watch.over("weights", PackedLinear.forward)),
        mock.patch.object(PanelLinear, "forward", watch.over("weights", PanelLinear.forward)),
        mock.patch.object(lean, "attend", watch.over("attention", block_attention.attend)),
        mock.patch.object(Target, "forward", watch.during(Target.forward)),
        mock.patch.object(Target, "head", watch.over("head", Target.head, always=True)),
    ):
        yield watch


def ready(pair: Pair, mode: Mode, requests: int, context: int, steps: int) -> Engine:
    """An engine whose requests have all been read and have drafted a few times."""
    target, made = pair.target, torch.Generator().manual_seed(requests)
    prompts = torch.randint(100, target.vocab_size, (requests, context), generator=made).tolist()
    block = pair.decoder.drafter.config.block_size if pair.decoder.drafter is not None else 0
    tokens = (steps + 8) * (block + 1)
    some = [Request(f"{i}", ids, Sampling(), i, tokens, ignore_stop=True) for i, ids in enumerate(prompts)]
    limits = Limits(requests, requests * (context + tokens + 256))
    engine = Engine(target, some, limits, mode, pair.decoder.drafter, lookup=False)
    while len(engine.admission.running) < requests or any(row.unread for row in engine.admission.running):
        engine.step(engine.admission.shares())
    for _ in range(4):
        engine.step(engine.admission.shares())
    return engine


def parts_of(stack: Stack, batch: RaggedBatch, repeats: int) -> dict[str, float]:
    """Seconds of a program's products, of its attention and of what lies between, each as a program of its own.

    Keys and values of the batch's rows are overwritten: the step itself would write others there.
    """
    rows = len(batch.positions_T)
    prepared = stack.prepare(rows, batch.cache)
    rotation = torch.zeros(rows, 1, 4096, dtype=torch.complex64)
    prepared.aim((rotation,), batch.rows_T, batch.plan.seen)
    table, starts, kernels = prepared.program.table, prepared.program._starts, prepared.program._kernels
    found, calls = {}, len(kernels) // len(stack.layers)
    for name, places in PARTS.items():
        chosen = [i for i in range(len(kernels)) if i % calls in places]
        part = Program([(kernels[i], tuple(table[starts[i] : starts[i + 1] - 1].tolist())) for i in chosen])
        found[name] = timed(part.run, repeats)
    return found


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    taken = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def pieces(engine: Engine, watch: Watch, repeats: int) -> dict[str, float]:
    """Milliseconds of an average step, by piece."""
    engine.laps = Laps()
    watch.seconds.clear()
    for _ in range(repeats):
        engine.step(engine.admission.shares())
    laps = {name: 1000 * seconds / repeats for name, seconds in engine.laps.seconds.items()}
    inside = {name: 1000 * seconds / repeats for name, seconds in watch.seconds.items()}
    compiled, running = engine.target._compiled, engine.admission.running
    block = engine._drafter.drafter.config.block_size if engine._drafter is not None else 0
    if compiled is not None:
        tables = [row.table for row in running]
        for row in running:
            engine.pool.reserve(row.table, block + 1)
        batch = RaggedBatch(engine.cache, tables, [block + 1] * len(tables))
        with torch.inference_mode():
            inside |= {name: 1000 * seconds for name, seconds in parts_of(compiled.stack, batch, repeats).items()}
    draft = sum(laps.get(name, 0.0) for name in DRAFT)
    rest = laps["verify"] - sum(inside.values())
    return {
        "whole": sum(laps.values()),
        **{name: inside.get(name, 0.0) for name in ("weights", "attention", "between", "head")},
        "sampling": laps["sample"],
        "draft": draft,
        "Python": rest + laps["bookkeeping"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", default="1,8,32")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    ours = load_pair(dtype="float32")
    with pytorch_kernels():
        before = load_pair(dtype="float32")
    assert before.target._compiled is None and ours.target._compiled is not None
    print(f"torch {torch.__version__}, float32, context {options.context}, {options.repeats} steps each; ms a step")
    rows: list[dict[str, Any]] = []
    modes: tuple[Mode, ...] = ("plain", "dspark")
    for requests in map(int, options.requests.split(",")):
        for mode in modes:
            with watched() as watch:
                with pytorch_kernels():
                    engine = ready(before, mode, requests, options.context, options.repeats)
                    old = pieces(engine, watch, options.repeats)
                engine = ready(ours, mode, requests, options.context, options.repeats)
                new = pieces(engine, watch, options.repeats)
            for kernels, found in (("PyTorch's", old), ("own", new)):
                rows.append({"requests": requests, "mode": mode, "kernels": kernels, **found})
                cells = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(f"{requests:3d} {mode:7s} {kernels:10s} {cells}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
