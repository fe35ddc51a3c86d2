"""Everything about a run that is a pure function of the step: learning rate, which examples, which random numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` share, then a cosine to zero at ``steps``; ``step`` counts from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def generator_at(seed: int, *key: int | str) -> torch.Generator:
    """Random numbers of one purpose: a pure function of the run's seed and ``key``, so a resumed run draws the same."""
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Batches:
    """Shuffled batches of neighbours in length: each epoch holds every example once, in an order of its own.

    Examples are shuffled, sorted by length within windows of several batches (little padding), and the batches
    shuffled.
    """

    WINDOW = 16

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths = lengths
        self._size = min(size, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def at(self, step: int) -> list[int]:
        """Indices of the batch of ``step``."""
        per_epoch = -(-len(self._lengths) // self._size)
        epoch, index = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[index]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = generator_at(self._seed, "epoch", epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        window = self.WINDOW * self._size
        by_length = [
            index
            for first in range(0, len(order), window)
            for index in sorted(order[first : first + window], key=self._lengths.__getitem__)
        ]
        batches = [by_length[first : first + self._size] for first in range(0, len(order), self._size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
