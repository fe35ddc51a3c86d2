"""What the sequential head brings and what it takes: the same contexts with its bias and without, its share of a round.

    python benchmarks/sequential_head.py [--drafter smollm2-135m] [--prompts FILE ...] [--limit 12] [--tokens 128]

Contexts are all positions of the target's greedy answers; a slot counts where all slots before it had the target's own
token (which is what decoding would have verified from there). Not decoding itself: rounds begin where the last one
failed, at harder places. Times are medians with nothing else running.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from pathlib import Path

import torch
from pieces import ready, timed

from dspark.cli.pair import load_pair, load_quietly, resolve_drafter
from dspark.data.features import Example, OnlineFeatures
from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.training.validation import Validation, validate

GREEDY = Sampling()
OWN_PROMPTS = Path(__file__).parents[1] / "src" / "dspark" / "assets" / "demo" / "prompts.jsonl"
_TOGETHER = 128  # answers decoded at once


def contexts(
    target: Target,
    drafter: DSparkDrafter,
    prompts: list[Path],
    limit: int,
    tokens: int,
    sampling: Sampling = GREEDY,
) -> OnlineFeatures:
    """Features of the target's answers."""
    chosen = [target.chat.prompt_ids(p.first_messages()) for p in read_in_turn(prompts, limit)]
    requests = [Request(f"{i}", ids, sampling, i, tokens) for i, ids in enumerate(chosen)]
    longest = max(map(len, chosen)) + tokens
    together = min(len(requests), _TOGETHER)
    answered = Engine(target, requests, Limits(together, together * (longest + 64))).run()
    examples = [Example(c.request.id, c.request.prompt_ids + c.output_ids, len(c.request.prompt_ids)) for c in answered]
    taps = drafter.config.target_layer_ids
    return OnlineFeatures(target, [e for e in examples if len(e.ids) > e.start + 1], taps, memory_bytes=1e11)


def with_and_without(
    target: Target, drafter: DSparkDrafter, source: OnlineFeatures, slots: int
) -> tuple[Validation, Validation]:
    """Acceptance along the block, and the same with the bias zeroed."""
    drafter.config = replace(drafter.config, block_size=slots)

    def found() -> Validation:
        return validate(drafter, source, target.ends.head, sequences=4, anchors=1_000_000)

    whole = found()
    with torch.no_grad():
        drafter.markov_head.output.zero_()
    return whole, found()


def print_acceptance(name: str, found: Validation) -> None:
    """Greedy acceptance by position, and how many contexts reached each."""
    reached = list(accumulate(found.greedy_acceptance[:-1], mul, initial=1.0))
    print(
        f"{name:13s} greedy tau {found.greedy_tau:.3f}  tau at temperature 1 {found.tau:.3f}  {found.blocks} contexts"
    )
    print("   acceptance ", " ".join(f"{a:6.3f}" for a in found.greedy_acceptance))
    print("   reached by ", " ".join(f"{found.blocks * share:6.0f}" for share in reached))


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of a whole round of one greedy request, of its sequential stage and of the base logits before it."""

    slots: int
    whole: float
    sequential: float
    head: float


def round_times(drafter: str, repeats: int, dtype: str = "auto") -> RoundTimes:
    """Time rounds that draft and verify whole blocks."""
    pair = load_pair(drafter=drafter, dtype=dtype)
    engine = ready(pair, "dspark", 1, 256, repeats)
    model = pair.decoder.drafter
    assert model is not None and model.program is not None, "drafts are not compiled here"
    assert engine._drafter is not None
    started = time.perf_counter()
    for _ in range(repeats):
        engine.step(engine.admission.shares())
    whole = (time.perf_counter() - started) / repeats
    slots = model.config.block_size
    program = model.program.prepare(1, slots, engine._drafter.cache).stack.program
    # A lookup, a product, a sum and a search a slot, and the last token's id.
    first = len(program._kernels) - (4 * slots + 1)

    def part(first: int, end: int | None = None) -> Callable[[], None]:
        return lambda: program.run(first, end)

    sequential, head = timed(part(first), repeats), timed(part(first - 1, first), repeats)
    return RoundTimes(slots, whole, sequential, head)


def print_share(times: RoundTimes) -> None:
    """What of a round is the sequential stage."""
    print(
        f"a round of {times.slots} drafts, all verified: {1e3 * times.whole:.2f} ms; lookups, bias products and"
        f" searches {1e3 * times.sequential:.2f} ms ({times.sequential / times.whole:.1%}), base logits"
        f" {1e3 * times.head:.2f} ms"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--drafter", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[OWN_PROMPTS])
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, help="of a block; those of its training unless given")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    target = load_quietly("smollm2-135m", "float32")
    folder = resolve_drafter(options.drafter)
    drafter = load_drafter(folder, target.identity, target.ends, torch.float32, target.device)
    source = contexts(target, drafter, options.prompts, options.limit, options.tokens)
    slots = options.slots or drafter.config.block_size
    whole, zeroed = with_and_without(target, drafter, source, slots)
    print_acceptance("as it is", whole)
    print_acceptance("bias zeroed", zeroed)
    print_share(round_times(options.drafter, options.repeats))


if __name__ == "__main__":
    main()
