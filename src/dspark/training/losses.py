"""The loss terms (Eq. 9-11), computed slot by slot in chunks so that V-wide tensors never exceed one chunk.

Forward and backward of the distribution terms are one pass: a chunk's logits give both the loss and, in closed form,
its gradient, so nothing V-wide is kept. With p = softmax(l) over the draft vocabulary, q the target's probabilities
there (q sums to one minus the mass outside), s = sign(p - q), and a hard label y:

    soft cross-entropy  -sum q log p        d/dl = p * sum(q) - q
    hard cross-entropy  -log p_y            d/dl = p - onehot(y)           (skipped where y can't be drafted)
    L1 = sum |p - q| + mass outside         d/dl = p * (s - sum(s * p))

Legend: N supervised slots, d hidden size, r Markov rank, D draft vocabulary, C slots of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dspark.nn.distance_kernel import can_measure, distances

CHUNK = 256


@dataclass(frozen=True)
class Mix:
    """Weights of the three distribution terms."""

    hard_ce: float
    soft_ce: float
    l1: float


class Slots(NamedTuple):
    """Supervised slots of a batch, flat.

    hidden ``[N, d]`` and summed ``[N, r]`` (of the previous tokens, as W_2 reads it) are the drafter's; target_hidden
    ``[N, d]`` and log_mass ``[N]`` the target's at the same position; labels ``[N]`` indices into the draft vocabulary,
    -1 outside it; weights ``[N]`` of the slots, already divided by their sum.
    """

    hidden: Tensor
    summed: Tensor
    target_hidden: Tensor
    log_mass: Tensor
    labels: Tensor
    weights: Tensor


class Distances(NamedTuple):
    """``loss`` (scalar, differentiable) and per slot ``[N]``, detached: hard_ce (0 where skipped), soft_ce, l1 (0 to
    2).
    """

    loss: Tensor
    hard_ce: Tensor
    soft_ce: Tensor
    l1: Tensor


def distribution_loss(slots: Slots, head_Dd: Tensor, markov_Dr: Tensor, mix: Mix, top_k: int = 0) -> Distances:
    """Weighted sum over slots of ``mix``'s terms between p_d = softmax(h head^T + m markov^T) and the target's p_t.

    The frozen ``head_Dd`` (rows of the draft vocabulary) serves drafter and target alike. ``top_k``: only so many
    of the largest base logits get the second summand (0: all do). Probabilities are fp32 or better.
    """
    fused: Any = _Fused.apply  # untyped in torch
    loss, rows = fused(slots.hidden, slots.summed, markov_Dr, head_Dd, slots[2:], mix, top_k)
    return Distances(loss, *rows)


def confidence_loss(logits_N: Tensor, l1_N: Tensor, weights_N: Tensor) -> Tensor:
    """Weighted BCE of c_k against its label c* = 1 - L1 / 2 (Eq. 8, Eq. 11); the label carries no gradient."""
    label_N = (1 - 0.5 * l1_N.detach()).clamp(0, 1)
    bce_N = torch.nn.functional.binary_cross_entropy_with_logits(logits_N, label_N, reduction="none")
    return (weights_N * bce_N).sum()


class _Fused(torch.autograd.Function):
    """Loss and gradients in one pass over chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: Tensor,
        summed_Nr: Tensor,
        markov_Dr: Tensor,
        head_Dd: Tensor,
        given: tuple[Tensor, ...],
        mix: Mix,
        top_k: int,
    ) -> tuple[Tensor, Tensor]:
        target_Nd, log_mass_N, labels_N, weights_N = given
        grads = torch.zeros_like(hidden_Nd), torch.zeros_like(summed_Nr), torch.zeros_like(markov_Dr)
        rows_3N = hidden_Nd.new_zeros(3, len(hidden_Nd))
        for first in range(0, len(hidden_Nd), CHUNK):
            c = slice(first, first + CHUNK)
            logits_CD = hidden_Nd[c] @ head_Dd.T
            ids_Ck = logits_CD.topk(top_k, sorted=False).indices if 0 < top_k < logits_CD.shape[1] else None
            if ids_Ck is None:
                logits_CD.addmm_(summed_Nr[c], markov_Dr.T)
            else:
                logits_CD.scatter_add_(1, ids_Ck, (summed_Nr[c] @ markov_Dr.T).gather(1, ids_Ck))
            q_CD = target_Nd[c] @ head_Dd.T
            rows_3N[:, c], grad_CD = _chunk(logits_CD, q_CD, log_mass_N[c], labels_N[c], weights_N[c], mix)
            grads[0][c] = grad_CD @ head_Dd
            if ids_Ck is not None:  # no other logit depends on the sequential head
                grad_CD = torch.zeros_like(grad_CD).scatter_(1, ids_Ck, grad_CD.gather(1, ids_Ck))
            grads[1][c] = grad_CD @ markov_Dr
            grads[2].addmm_(grad_CD.T, summed_Nr[c])
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(rows_3N)
        per_slot_N = mix.hard_ce * rows_3N[0] + mix.soft_ce * rows_3N[1] + mix.l1 * rows_3N[2]
        return (weights_N * per_slot_N).sum(), rows_3N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        return (*(scale * grad for grad in ctx.saved_tensors), None, None, None, None)


def _chunk(
    logits_CD: Tensor, target_CD: Tensor, log_mass_C: Tensor, labels_C: Tensor, weights_C: Tensor, mix: Mix
) -> tuple[Tensor, Tensor]:
    """Terms ``[3, C]`` and the gradient of their weighted mix with respect to the logits ``[C, D]``.

    Both matrices of logits may be overwritten.
    """
    if can_measure(logits_CD):
        mass_C, labels_C, weights_C = (each.contiguous() for each in (log_mass_C, labels_C, weights_C))
        terms_3C = distances(logits_CD, target_CD, mass_C, labels_C, weights_C, (mix.hard_ce, mix.soft_ce, mix.l1))
        return terms_3C, logits_CD
    q_CD = target_CD.sub_(log_mass_C[:, None]).exp_()
    logp_CD = logits_CD.log_softmax(dim=-1)
    p_CD = logp_CD.exp()
    inside_C = q_CD.sum(dim=-1)
    soft_C = -torch.linalg.vecdot(q_CD, logp_CD)
    known_C = (labels_C >= 0).to(p_CD.dtype)
    label_C1 = labels_C.clamp(min=0)[:, None]
    hard_C = -logp_CD.gather(1, label_C1)[:, 0] * known_C
    apart_CD = p_CD - q_CD
    l1_C = apart_CD.abs().sum(dim=-1) + (1 - inside_C).clamp(min=0)
    sign_CD = apart_CD.sign_()
    shift_C = mix.soft_ce * inside_C + mix.hard_ce * known_C - mix.l1 * torch.linalg.vecdot(sign_CD, p_CD)
    grad_CD = sign_CD.mul_(mix.l1).add_(shift_C[:, None]).mul_(p_CD)
    if mix.soft_ce:
        grad_CD.sub_(q_CD, alpha=mix.soft_ce)
    if mix.hard_ce:
        grad_CD.scatter_add_(1, label_C1, (-mix.hard_ce * known_C)[:, None])
    return torch.stack((hard_C, soft_C, l1_C)), grad_CD.mul_(weights_C[:, None])
