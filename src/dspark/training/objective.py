"""From a batch of features to one loss: blocks, their slots, and the weighted terms (Eq. 12).

Legend: B sequences, A anchors, K slots of a block, N supervised slots, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.data.features import FeatureBatch
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.training.anchors import Blocks
from dspark.training.losses import Mix, Slots, confidence_loss, distribution_loss, unrolled_loss
from dspark.training.outputs import Outputs
from dspark.training.recipe import LossSettings


@dataclass(frozen=True)
class Terms:
    """Weighted means over the supervised slots; ``loss`` is differentiable (of unrolled steps their weighted sum),
    ``slots`` their number.
    """

    loss: Tensor
    hard_ce: float
    soft_ce: float
    l1: float
    confidence: float
    slots: int


def supervised_slots(drafter: Drafter, batch: FeatureBatch, blocks: Blocks) -> tuple[Slots, Tensor]:
    """The supervised slots of ``blocks`` and the rows ``[N, r]`` that their previous tokens have in W_1."""
    hidden_BAKd = drafter.taught(batch.taps, batch.ids, blocks.previous, blocks.anchor_positions)
    row_N, anchor_N, slot_N = blocks.supervised.nonzero(as_tuple=True)
    at_N = blocks.anchor_positions[row_N, anchor_N] + slot_N
    head = drafter.markov_head
    embedded_BAKr = head.embed(blocks.previous)  # once for both heads: its gradient is as large as W_1
    summed_BAKr = head.over_blocks(hidden_BAKd, embedded_BAKr)
    slots = Slots(
        hidden=hidden_BAKd[row_N, anchor_N, slot_N].to(drafter.dtype),
        summed=summed_BAKr[row_N, anchor_N, slot_N].to(drafter.dtype),
        target_hidden=batch.hidden[row_N, at_N],
        log_mass=batch.log_mass[row_N, at_N],
        labels=_draft_index(drafter, blocks.labels[row_N, anchor_N, slot_N]),
        places=slot_N,
    )
    return slots, embedded_BAKr[row_N, anchor_N, slot_N].to(drafter.dtype)


def objective(
    drafter: Drafter,
    batch: FeatureBatch,
    blocks: Blocks,
    settings: LossSettings,
    done: float = 1.0,
    bf16: bool = False,
    head: Outputs | None = None,
) -> Terms:
    """The training loss of one batch, ``done`` being the share of the run that is over; at least one slot must be
    supervised. ``bf16``: the drafter multiplies in it, forward and backward; what follows its last norm is fp32, but
    for products with ``head`` if that has it otherwise (None: the drafter's, in fp32).
    """
    with torch.autocast(drafter.device.type, torch.bfloat16, enabled=bf16):
        slots, embedded_Nr = supervised_slots(drafter, batch, blocks)
    mix = Mix(settings.hard_ce, settings.soft_ce, settings.l1 if done >= settings.l1_after else 0.0)
    # The head of a bf16 target in fp32: losses need the precision, and its rows of the draft vocabulary are few.
    head = head or Outputs(drafter.head.float())
    given = slots, head, drafter.markov_head.output, mix
    if settings.position_weights == "steps":
        distances = unrolled_loss(*given, settings.step_decay, drafter.markov_top_k)
    else:
        decay = settings.decay if settings.position_weights == "exponential" else None
        distances = distribution_loss(*given, decay, drafter.markov_top_k)
    loss, weights_N = distances.loss, distances.weights
    confidence = loss.new_zeros(())
    if isinstance(drafter, DSparkDrafter) and drafter.confidence_head is not None:
        logits_N = drafter.taught_confidence(slots.hidden, embedded_Nr)
        confidence = confidence_loss(logits_N, distances.l1, weights_N)
        loss = loss + settings.confidence * confidence
    return Terms(
        loss=loss,
        hard_ce=float(weights_N @ distances.hard_ce),
        soft_ce=float(weights_N @ distances.soft_ce),
        l1=float(weights_N @ distances.l1),
        confidence=float(confidence.detach()),
        slots=len(weights_N),
    )


def _draft_index(drafter: Drafter, ids_N: Tensor) -> Tensor:
    """Index of target ids in the draft vocabulary, -1 where they are not in it."""
    if drafter.support is None:
        return ids_N
    at_N = torch.searchsorted(drafter.support, ids_N).clamp(max=len(drafter.support) - 1)
    return torch.where(drafter.support[at_N] == ids_N, at_N, -1)
