"""What a drafter is trained on: token ids with the target's hidden states, behind one type.

The trainer asks a FeatureSource for batches and can't tell whether they are computed on the spot or were kept.
Positions carry the target's tapped layers (the drafter's context) and its last hidden state (the target's
distribution, through the frozen head); the logarithm of the softmax's full mass is stored per position, so that
training never needs V-wide rows.

Legend: B sequences, S positions, F = taps * d, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dspark.data.responses import Response
from dspark.data.store import Store
from dspark.kernels.law import can_make_law, masses
from dspark.targets.compiled import FEW_ROWS
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch

# Rows of one V-wide block while the softmax's mass is computed: 256 x 49,152 fp32 are 50 MB.
_MASS_ROWS = 256


@dataclass(frozen=True)
class Example:
    """One supervised conversation turn: the answer's tokens are ``ids[start:]``."""

    id: str
    ids: list[int]
    start: int


@dataclass(frozen=True)
class FeatureBatch:
    """Padded features of B examples; rows from ``lengths[b]`` on are padding and never read.

    ids, supervised ``[B, S]`` (answer tokens); taps ``[B, S, F]`` in the dtype they are kept in; hidden ``[B, S, d]``
    fp32 after the final norm and log_mass ``[B, S]`` fp32, both valid from the position before the answer on; lengths
    ``[B]``.
    """

    ids: Tensor
    supervised: Tensor
    taps: Tensor
    hidden: Tensor
    log_mass: Tensor
    lengths: Tensor


class FeatureSource(Protocol):
    """Random access to examples with their features."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def length(self, index: int) -> int:
        """Tokens of one example."""
        ...

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of the examples named."""
        ...


def examples_of(responses: Sequence[Response], max_tokens: int) -> list[Example]:
    """Supervised examples, cut at ``max_tokens``; those with fewer than two answer tokens left teach nothing and are
    dropped.

    A stop id is in ``output_ids`` only where the answer really stopped, so it is a label exactly then.
    """
    examples = []
    for response in responses:
        ids = (response.prompt_ids + response.output_ids)[:max_tokens]
        if len(ids) - len(response.prompt_ids) >= 2:
            examples.append(Example(f"{response.id}/{response.turn}", ids, len(response.prompt_ids)))
    return examples


@dataclass(frozen=True)
class _Features:
    taps_SF: Tensor
    hidden_AD: Tensor
    log_mass_A: Tensor


class OnlineFeatures:
    """Features by running the target when they are first asked for, kept in memory while they fit.

    ``memory_bytes`` bounds what is kept (first come, first kept: an epoch in random order would flush any smaller
    store of recent ones). ``keep_dtype`` is the dtype that taps are rounded to; hidden states of answers stay fp32.
    """

    def __init__(
        self,
        target: Target,
        examples: Sequence[Example],
        taps: Sequence[int],
        *,
        memory_bytes: float = 0,
        keep_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._target = target
        self._examples = examples
        self._taps = tuple(taps)
        self._store = Store(memory_bytes)
        self._keep_dtype = keep_dtype
        self._exact = target.rounds is None
        """Else whole texts may be read in the fastest way there is."""
        self._kept: dict[int, _Features] = {}

    def __len__(self) -> int:
        return len(self._examples)

    def length(self, index: int) -> int:
        """Tokens of one example."""
        return len(self._examples[index].ids)

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of ``indices``; those not kept are computed, mostly in one ragged pass."""
        missing = [index for index in indices if index not in self._kept]
        computed: dict[int, _Features] = {}
        for some in self._together(missing):
            computed |= zip(some, self._compute(some), strict=True)
        for index, features in computed.items():
            kept = self._store.keep((features.taps_SF, features.hidden_AD, features.log_mass_A))
            if kept is not None:
                self._kept[index] = _Features(*kept)
        return self._pad(indices, [computed.get(index) or self._kept[index] for index in indices])

    def _together(self, indices: list[int]) -> list[list[int]]:
        """Who may be computed with whom: where long texts are read otherwise than short ones, these are alone, so that
        a step does not depend on what the memory holds.
        """
        if self._exact:
            return [indices] if indices else []
        long = [index for index in indices if self.length(index) > FEW_ROWS]
        return ([long] if long else []) + [[index] for index in indices if self.length(index) <= FEW_ROWS]

    def _compute(self, indices: list[int]) -> list[_Features]:
        examples = [self._examples[index] for index in indices]
        counts = [len(example.ids) for example in examples]
        # no_grad, not inference_mode: tensors made there can't be saved for a backward pass
        with torch.no_grad():
            cache = self._target.new_cache(len(examples), max(counts), exact=self._exact)
            ids = torch.tensor([i for example in examples for i in example.ids], device=self._target.device)
            step = self._target.forward(ids, RaggedBatch(cache, cache.tables(), counts), self._taps)
            assert step.features_TF is not None
            kept = []
            rows = zip(examples, step.features_TF.split(counts), step.hidden_TD.split(counts), strict=True)
            for example, taps_SF, hidden_SD in rows:
                answer_AD = hidden_SD[example.start - 1 :].float().clone()
                # Rounded whether they will be kept or not: a step must not depend on what the memory holds.
                rounded_SF = taps_SF.to(self._keep_dtype, copy=True)
                kept.append(_Features(rounded_SF, answer_AD, self._log_mass(answer_AD)))
        return kept

    def _log_mass(self, hidden_AD: Tensor) -> Tensor:
        """log of the softmax's denominator over the whole vocabulary, fp32 ``[A]``."""
        blocks = hidden_AD.to(self._target.dtype).split(_MASS_ROWS)
        return torch.cat([_log_sums(self._target.head(block).float()) for block in blocks])

    def _pad(self, indices: Sequence[int], features: list[_Features]) -> FeatureBatch:
        examples = [self._examples[index] for index in indices]
        longest = max(len(example.ids) for example in examples)
        rows, device = len(examples), self._target.device
        ids = torch.zeros(rows, longest, dtype=torch.long, device=device)
        supervised = torch.zeros(rows, longest, dtype=torch.bool, device=device)
        taps = torch.zeros(rows, longest, features[0].taps_SF.shape[-1], dtype=self._keep_dtype, device=device)
        hidden = torch.zeros(rows, longest, features[0].hidden_AD.shape[-1], device=device)
        log_mass = torch.zeros(rows, longest, device=device)
        for row, (example, kept) in enumerate(zip(examples, features, strict=True)):
            end = len(example.ids)
            ids[row, :end] = torch.tensor(example.ids, device=device)
            supervised[row, example.start : end] = True
            taps[row, :end] = kept.taps_SF
            hidden[row, example.start - 1 : end] = kept.hidden_AD
            log_mass[row, example.start - 1 : end] = kept.log_mass_A
        lengths = torch.tensor([len(example.ids) for example in examples], device=device)
        return FeatureBatch(ids, supervised, taps, hidden, log_mass, lengths)


def _log_sums(logits_AV: Tensor) -> Tensor:
    """log of ``sum(exp(logits))``, ``[A]``: rows as wide as a vocabulary are read twice, where PyTorch reads and writes
    them some six times.
    """
    if can_make_law(logits_AV):
        return logits_AV.amax(dim=-1) + masses(logits_AV).log()
    return logits_AV.logsumexp(dim=-1)
