"""One request, three ways: transformers.generate, our plain decoding, and speculation, interleaved on the same prompts.

    python benchmarks/single_request.py [--prompts FILE] [--limit 6] [--tokens 64] [--repeats 5]

Prints medians with quartiles of tokens a second and the ratios pair by pair. Refuses to run on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from dspark.cli.pair import load_pair
from dspark.data.prompts import read_prompts
from dspark.decoding.request import Request
from dspark.speculation.sampling import Sampling
from dspark.targets.sources import resolve_source

OWN_PROMPTS = Path(__file__).parents[1] / "src" / "dspark" / "assets" / "demo" / "prompts.jsonl"


def quartiles(values: list[float]) -> str:
    """Median and quartiles, for people."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:7.2f}  [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=Path, default=OWN_PROMPTS)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--target", default="smollm2-135m")
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    pair = load_pair(options.target, "smollm2-135m", "auto", "auto")
    target = pair.decoder.target
    hugging_face = AutoModelForCausalLM.from_pretrained(
        resolve_source(options.target).folder, dtype=target.dtype
    ).eval()
    prompts = [target.chat.prompt_ids(p.first_messages()) for p in read_prompts([options.prompts])[: options.limit]]

    def ours(mode: str) -> Callable[[list[int]], int]:
        def decode(ids: list[int]) -> int:
            rounds = pair.decoder.stream(Request("prompt", ids, Sampling(), 0, options.tokens), mode)
            return sum(len(r.tokens) for r in rounds)

        return decode

    @torch.inference_mode()
    def theirs(ids: list[int]) -> int:
        settings = {"max_new_tokens": options.tokens, "do_sample": False, "pad_token_id": 0}
        out = hugging_face.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)
        return out.shape[1] - len(ids)

    ways = {"transformers.generate": theirs, "plain": ours("plain"), "speculative": ours("dspark")}
    for way in ways.values():
        way(prompts[0])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        names = list(ways)[repeat % 3 :] + list(ways)[: repeat % 3]
        for name in names:
            started = time.perf_counter()
            tokens = sum(ways[name](ids) for ids in prompts)
            rates[name].append(tokens / (time.perf_counter() - started))
    print(f"{len(prompts)} prompts x {options.tokens} tokens, greedy, {target.dtype}, torch {torch.__version__}")
    print("median [quartiles]")
    for name, values in rates.items():
        print(f"{name:24s} {quartiles(values)} tokens/s")
    for a, b in (
        ("plain", "transformers.generate"),
        ("speculative", "plain"),
        ("speculative", "transformers.generate"),
    ):
        print(f"{a} / {b}: {quartiles([x / y for x, y in zip(rates[a], rates[b], strict=True)])}")


if __name__ == "__main__":
    main()
