"""The fused loss beside the formula as the reference writes it: time, and memory at its peak, forward and backward.

    python benchmarks/losses.py [--repeats 3] [--json FILE]

512 anchors of 7 slots over 49,152 tokens, and 128 anchors over 151,936; hidden size 576, Markov rank 256, fp32. Each
side runs in a process of its own, the sides in turn; memory is what the process's peak grew by. "Products" are the
matrix products that any way needs: logits of draft and target, gradients of hidden states and Markov head. The fused
side is given the logarithm of the target's softmax mass, as training has it. Refuses to run on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark.training.losses import Mix, Slots, distribution_loss
from dspark.training.outputs import Outputs

HIDDEN, RANK, SLOTS, DECAY = 576, 256, 7, 4.0
SIZES = {"512 anchors, V = 49,152": (512, 49_152), "128 anchors, V = 151,936": (128, 151_936)}
MIX = Mix(hard_ce=0.1, soft_ce=0.0, l1=0.9)


def given(anchors: int, vocabulary: int) -> tuple[Slots, Tensor, Tensor]:
    """Random slots, the frozen head and the Markov matrix; the first two and the last want gradients."""
    made = torch.Generator().manual_seed(0)
    count = anchors * SLOTS
    head = torch.randn(vocabulary, HIDDEN, generator=made) / 8
    target = torch.randn(count, HIDDEN, generator=made)
    mass = torch.cat([(some @ head.T).logsumexp(-1) for some in target.split(256)])
    labels = torch.randint(0, vocabulary, (count,), generator=made)
    places = torch.arange(count) % SLOTS
    hidden, summed = torch.randn(count, HIDDEN, generator=made), torch.randn(count, RANK, generator=made)
    markov = torch.randn(vocabulary, RANK, generator=made) / 16
    slots = Slots(hidden.requires_grad_(), summed.requires_grad_(), target, mass, labels, places)
    return slots, head, markov.requires_grad_()


def direct(slots: Slots, head: Tensor, markov: Tensor) -> Tensor:
    """The formula written out over whole rows, as the reference does."""
    logits = slots.hidden @ head.T + slots.summed @ markov.T
    with torch.no_grad():
        p_t = (slots.target_hidden @ head.T).softmax(dim=-1)
    cross = torch.nn.functional.cross_entropy(logits, slots.labels, reduction="none")
    l1 = (logits.softmax(dim=-1) - p_t).abs().sum(dim=-1)
    weights = torch.exp(-slots.places / DECAY)
    return (weights / weights.sum() * (MIX.hard_ce * cross + MIX.l1 * l1)).sum()


def fused(slots: Slots, head: Tensor, markov: Tensor) -> Tensor:
    """As training computes it."""
    return distribution_loss(slots, Outputs(head), markov, MIX, DECAY).loss


def products(slots: Slots, head: Tensor, markov: Tensor) -> Tensor:
    """Only the matrix products, chunk by chunk."""
    hidden, summed, weight = slots.hidden.detach(), slots.summed.detach(), markov.detach()
    grads = [torch.zeros_like(each) for each in (hidden, summed, weight)]
    for first in range(0, len(hidden), 256):
        c = slice(first, first + 256)
        logits = (hidden[c] @ head.T).addmm_(summed[c], weight.T)
        slots.target_hidden[c] @ head.T
        grads[0][c] = logits @ head
        grads[1][c] = logits @ weight
        grads[2].addmm_(logits.T, summed[c])
    return slots.hidden.sum() * 0


WAYS: dict[str, Callable[[Slots, Tensor, Tensor], Tensor]] = {"direct": direct, "fused": fused, "products": products}


def once(way: str, anchors: int, vocabulary: int) -> dict[str, float]:
    """Seconds of a forward and backward pass after one to warm up, and bytes that the peak grew by."""
    slots, head, markov = given(anchors, vocabulary)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        WAYS[way](slots, head, markov).backward()
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "bytes": 1024 * (peak - before)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once[0], *map(int, options.once[1:]))))
        return
    if os.getloadavg()[0] > 0.5:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below 0.5")
    results: dict[str, Any] = {}
    for name, size in SIZES.items():
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way, found in runs.items():
                command = [sys.executable, __file__, "--once", way, *map(str, size)]
                found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        figures = {
            way: {key: statistics.median(each[key] for each in found) for key in ("seconds", "bytes")}
            for way, found in runs.items()
        }
        floor = figures["products"]["seconds"]
        beyond = [figures[way]["seconds"] - floor for way in ("fused", "direct")]
        print(f"{name}: products alone {floor:.2f} s")
        for way in ("direct", "fused"):
            print(f"  {way:7s} {figures[way]['seconds']:6.2f} s, peak {figures[way]['bytes'] / 1e9:.2f} GB")
        memory = figures["fused"]["bytes"] / figures["direct"]["bytes"]
        print(
            f"  fused / direct: memory {memory:.2f}, time beyond the products {beyond[0] / beyond[1]:.2f}", flush=True
        )
        results[name] = figures
    if options.json is not None:
        options.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
