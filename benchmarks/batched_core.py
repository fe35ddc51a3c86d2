"""The batched core: a step against the bare weight products, many prompts against transformers, rounds by piece.

    python benchmarks/batched_core.py [--prompts FILE...] [--only step,throughput,rounds] [--json FILE]

Everything in one run, the two sides of a ratio interleaved. Refuses to run on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark.cli.pair import Pair, load_pair
from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.modes import Mode
from dspark.decoding.request import Completion, Request
from dspark.decoding.single import Decoder
from dspark.nn.packed import frozen_products
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.targets.sources import resolve_source

OWN_PROMPTS = Path(__file__).parents[1] / "src" / "dspark" / "assets" / "demo" / "prompts.jsonl"
CONTEXT = 256
PIECES = ("lookup", "draft", "draft, parallel", "draft, sequential", "verify", "sample", "features", "bookkeeping")


def middle(values: list[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(values)


def plain_model(target: Target, dtype: torch.dtype) -> Any:
    """The same model as transformers alone runs it."""
    return AutoModelForCausalLM.from_pretrained(resolve_source(target.name).folder, dtype=dtype).eval()


def linears(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Every product of transformers' own forward pass: the linear floor."""
    return [(module, module.in_features) for module in model.modules() if isinstance(module, nn.Linear)]


def products(target: Target) -> list[tuple[nn.Module, int]]:
    """Every product of our step, in the form it has there, with the width of its input."""
    return [(each, each.in_features) for each in frozen_products(target._model)]


@torch.inference_mode()
def floor(matrices: list[tuple[nn.Module, int]], inputs: dict[int, Tensor]) -> float:
    """Seconds of the weights' products alone."""
    started = time.perf_counter()
    for matrix, width in matrices:
        matrix(inputs[width])
    return time.perf_counter() - started


def steps(pair: Pair, repeats: int) -> Iterator[dict[str, Any]]:
    """A whole greedy step of R requests with a context of about 256, beside two floors of as many rows: the products of
    transformers' own layers, and our forms of them.
    """
    target = pair.target
    floors = {"linear": linears(plain_model(target, target.dtype)), "products": products(target)}
    for count in (1, 4, 16):
        made = torch.Generator().manual_seed(count)
        prompts = torch.randint(0, target.vocab_size, (count, CONTEXT), generator=made).tolist()
        requests = [Request(f"{i}", ids, Sampling(), i, 4 * repeats) for i, ids in enumerate(prompts)]
        engine = Engine(target, requests, Limits(count, count * (CONTEXT + 4 * repeats + 128)))
        while any(row.unread for row in engine.admission.running) or len(engine.admission.running) < count:
            engine.step(engine.admission.shares())
        inputs = {width: torch.randn(count, width, dtype=target.dtype) for _, width in floors["products"]}
        taken: dict[str, list[float]] = {name: [] for name in ("step", *floors)}
        for _ in range(repeats):
            for name, matrices in floors.items():
                taken[name].append(floor(matrices, inputs))
            started = time.perf_counter()
            shares = engine.admission.shares()
            engine.step(shares)
            if len(shares) == count:  # nobody has finished
                taken["step"].append(time.perf_counter() - started)
        found = {f"{name}_ms": middle(seconds) for name, seconds in taken.items()}
        ratios = {f"over_{name}": found["step_ms"] / found[f"{name}_ms"] for name in floors}
        yield {"requests": count, **found, **ratios}


def throughput(target: Target, prompts: list[list[int]], tokens: int, batch: int) -> dict[str, Any]:
    """All prompts through the core, and through transformers' generate in batches, until each answer's own end; of two
    precisions of theirs the faster one counts.
    """
    models = {dtype: plain_model(target, dtype) for dtype in (torch.float32, torch.bfloat16)}
    pad = AutoTokenizer.from_pretrained(resolve_source(target.name).folder).pad_token_id or 0
    cache_tokens = batch * (max(map(len, prompts)) + tokens)

    def ours(part: list[list[int]], tokens: int) -> int:
        requests = [Request(f"{i}", ids, Sampling(), i, tokens) for i, ids in enumerate(part)]
        return sum(len(c.output_ids) for c in Engine(target, requests, Limits(batch, cache_tokens)).run())

    @torch.inference_mode()
    def theirs(dtype: torch.dtype, part: list[list[int]], tokens: int) -> int:
        model, total = models[dtype], 0
        for first in range(0, len(part), batch):
            some = part[first : first + batch]
            width = max(map(len, some))
            ids = torch.tensor([[pad] * (width - len(each)) + each for each in some])
            mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in some])
            out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)[
                :, width:
            ]
            for row in out.tolist():
                ends = [i + 1 for i, token in enumerate(row) if token in target.stop_ids]
                total += min([*ends, len(row)])
        return total

    ways: dict[str, Callable[[list[list[int]], int], int]] = {"core": ours}
    ways |= {f"transformers, {str(dtype).removeprefix('torch.')}": partial(theirs, dtype) for dtype in models}
    rates, answered = {}, {}
    for name, decode in ways.items():
        decode(prompts[:batch], 4)  # warms up
        started = time.perf_counter()
        answered[name] = decode(prompts, tokens)
        rates[name] = answered[name] / (time.perf_counter() - started)
    layers = target.new_cache(1, 1)
    row = sum(t.numel() * t.element_size() for t in (*layers.keys, *layers.values))
    return {
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "answer_tokens": answered,
        **{f"{name}_tok_s": rate for name, rate in rates.items()},
        "ratio": rates["core"] / max(rate for name, rate in rates.items() if name != "core"),
        "cache_mb": cache_tokens * row / 1e6,
    }


def rounds(pair: Pair, prompts: list[list[int]], tokens: int) -> Iterator[dict[str, Any]]:
    """Speculative rounds at 1, 4 and 16 requests: as the reference loop's, tau, and where the time goes."""
    target, drafter = pair.target, pair.decoder.drafter
    requests = [Request(f"{i}", ids, Sampling(), i, tokens) for i, ids in enumerate(prompts)]
    oracle = Decoder(target, drafter)
    expected = {r.id: [t for x in oracle.reference(r, "dspark") for t in x.tokens] for r in requests}
    for count in (1, 4, 16):
        seconds: dict[Mode, float] = {}
        answers: list[Completion] = []
        for mode in ("plain", "dspark"):
            engine = Engine(target, requests, Limits(count, count * 1024), mode, drafter)
            started = time.perf_counter()
            answers = list(engine.run())
            seconds[mode] = time.perf_counter() - started
        tally = RoundTally()
        for each in answers:
            tally.extend(each.rounds)
        total = sum(engine.laps.seconds.values())
        yield {
            "requests": count,
            "same": sum(each.output_ids == expected[each.request.id] for each in answers),
            "of": len(answers),
            "tau": tally.tau,
            "speedup": seconds["plain"] / seconds["dspark"],
            "round_ms": 1000 * seconds["dspark"] * min(count, len(answers)) / tally.rounds,
            "share": {piece: engine.laps.seconds[piece] / total for piece in PIECES},
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=Path, nargs="+", default=[OWN_PROMPTS])
    parser.add_argument("--only", default="step,throughput,rounds")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, at most (rounds: a quarter)")
    parser.add_argument("--batch", type=int, default=32, help="requests at once (throughput)")
    parser.add_argument("--dtype", default="auto", help="of our side")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    pair = load_pair(dtype=options.dtype)
    chosen = read_in_turn(options.prompts, options.limit)
    prompts = [pair.target.chat.prompt_ids(p.first_messages()) for p in chosen]
    found: dict[str, Any] = {
        "dtype": str(pair.target.dtype),
        "weights": pair.target.weights,
        "torch": torch.__version__,
    }
    for name in options.only.split(","):
        if name == "step":
            found[name] = list(steps(pair, options.repeats))
        elif name == "throughput":
            found[name] = throughput(pair.target, prompts, options.tokens, options.batch)
        else:
            found[name] = list(rounds(pair, prompts[:16], options.tokens // 4))
        print(name, json.dumps(found[name], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
