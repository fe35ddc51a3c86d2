"""Teacher-forced quality on held-out answers: what the trainer watches while it can't afford to decode.

Legend: N supervised slots, K slots of a block, X blocks, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.data.features import FeatureSource
from dspark.drafters.drafter import Drafter
from dspark.drafters.heads import with_bias
from dspark.training.anchors import Blocks, blocks_at, choose_anchors
from dspark.training.losses import Slots
from dspark.training.objective import supervised_slots

_ROWS = 256


@dataclass(frozen=True)
class Validation:
    """Expected tokens a round along the answers' own text, whole blocks only.

    ``tau``: 1 + the mean of the summed survival, with acceptance 1 - TV at temperature 1. ``greedy_tau``: the same with
    agreement of the two argmaxes. ``conditional_acceptance[K]`` at temperature 1, ``greedy_acceptance[K]`` of argmaxes.
    """

    tau: float
    greedy_tau: float
    conditional_acceptance: list[float]
    greedy_acceptance: list[float]
    blocks: int


@torch.no_grad()
def validate(drafter: Drafter, source: FeatureSource, head: Tensor, *, sequences: int, anchors: int) -> Validation:
    """Quality of ``drafter`` over all of ``source``; ``head [V, d]`` is the target's. The same blocks at every call."""
    block_size = drafter.config.block_size
    accept: list[Tensor] = []
    agree: list[Tensor] = []
    for first in range(0, len(source), sequences):
        batch = source.batch(range(first, min(first + sequences, len(source))))
        generator = torch.Generator().manual_seed(first)
        positions, valid = choose_anchors(batch.supervised, anchors, generator)
        blocks = blocks_at(batch.ids, batch.supervised, positions, valid, block_size)
        blocks = _whole_blocks(blocks)
        if not blocks.supervised.any():
            continue
        slots, _ = supervised_slots(drafter, batch, blocks)
        accepted_N, agreed_N = _compare(drafter, slots, head)
        accept.append(accepted_N.view(-1, block_size))
        agree.append(agreed_N.view(-1, block_size))
    if not accept:
        return Validation(1.0, 1.0, [0.0] * block_size, [0.0] * block_size, 0)
    survival_XK, agreed_XK = (torch.cat(some).cumprod(dim=-1) for some in (accept, agree))
    return Validation(
        tau=1 + float(survival_XK.sum(dim=-1).mean()),
        greedy_tau=1 + float(agreed_XK.sum(dim=-1).mean()),
        conditional_acceptance=_conditional(survival_XK),
        greedy_acceptance=_conditional(agreed_XK),
        blocks=len(survival_XK),
    )


def _conditional(survival_XK: Tensor) -> list[float]:
    """Accepted at k over accepted at k - 1, pooled."""
    before_XK = torch.cat((torch.ones_like(survival_XK[:, :1]), survival_XK[:, :-1]), dim=-1)
    share_K = survival_XK.sum(dim=0) / before_XK.sum(dim=0).clamp(min=1e-9)
    found: list[float] = share_K.tolist()
    return found


def _whole_blocks(blocks: Blocks) -> Blocks:
    """Only blocks with K supervised slots, so that every slot of the average has the same blocks."""
    whole = blocks.supervised.all(dim=-1, keepdim=True)
    supervised = blocks.supervised & whole
    return Blocks(blocks.anchor_ids, blocks.anchor_positions, blocks.labels, blocks.previous, supervised)


def _compare(drafter: Drafter, slots: Slots, head_Vd: Tensor) -> tuple[Tensor, Tensor]:
    """Acceptance 1 - TV at temperature 1 and agreement of the argmaxes (0 or 1), ``[N]`` each."""
    accepted, agreed = [], []
    head_Dd, head_Vd = drafter.head.float(), head_Vd.float()
    for first in range(0, len(slots.hidden), _ROWS):
        c = slice(first, first + _ROWS)
        bias_CD = slots.summed[c] @ drafter.markov_head.output.T
        p_d_CD = with_bias(slots.hidden[c] @ head_Dd.T, bias_CD, drafter.markov_top_k).softmax(dim=-1)
        logits_CV = slots.target_hidden[c] @ head_Vd.T
        p_t_CV = (logits_CV - slots.log_mass[c, None]).exp()
        best_C = p_d_CD.argmax(dim=-1)
        if drafter.support is not None:
            p_t_CD, best_C = p_t_CV[:, drafter.support], drafter.support[best_C]
        else:
            p_t_CD = p_t_CV
        accepted.append(torch.minimum(p_d_CD, p_t_CD).sum(dim=-1))
        agreed.append((best_C == p_t_CV.argmax(dim=-1)).float())
    return torch.cat(accepted), torch.cat(agreed)
