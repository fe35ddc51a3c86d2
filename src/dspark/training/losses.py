"""The loss terms (Eq. 9-11), computed slot by slot in chunks so that V-wide tensors never exceed one chunk.

Forward and backward of the distribution terms are one pass: a chunk's logits give both the loss and, in closed form,
its gradient, so nothing V-wide is kept. With p = softmax(l) over the draft vocabulary, q the target's probabilities
there (q sums to one minus the mass outside), s = sign(p - q), and a hard label y:

    soft cross-entropy  -sum q log p        d/dl = p * sum(q) - q
    hard cross-entropy  -log p_y            d/dl = p - onehot(y)           (skipped where y can't be drafted)
    L1 = sum |p - q| + mass outside         d/dl = p * (s - sum(s * p))

A slot's weight multiplies what its row has become, so it may depend on the row's own acceptance (D-PACE).

Legend: N supervised slots, d hidden size, r Markov rank, D draft vocabulary, C slots of a chunk (whole blocks), X
blocks of a chunk, K slots of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dspark.kernels.distance import can_measure, distances
from dspark.training.outputs import Outputs

CHUNK = 256


@dataclass(frozen=True)
class Mix:
    """Weights of the three distribution terms."""

    hard_ce: float
    soft_ce: float
    l1: float


class Slots(NamedTuple):
    """Supervised slots of a batch, flat: the slots of a block follow each other.

    hidden ``[N, d]`` and summed ``[N, r]`` (of the previous tokens, as W_2 reads it) are the drafter's; target_hidden
    ``[N, d]`` and log_mass ``[N]`` the target's at the same position; labels ``[N]`` indices into the draft vocabulary,
    -1 outside it; places ``[N]`` in the block, from 0.
    """

    hidden: Tensor
    summed: Tensor
    target_hidden: Tensor
    log_mass: Tensor
    labels: Tensor
    places: Tensor


class Distances(NamedTuple):
    """``loss`` (scalar, differentiable) and per slot ``[N]``, detached: hard_ce (0 where skipped), soft_ce, l1 (0 to
    2) and the slot's weight, all of which sum to one.
    """

    loss: Tensor
    hard_ce: Tensor
    soft_ce: Tensor
    l1: Tensor
    weights: Tensor


def distribution_loss(
    slots: Slots, head: Outputs, markov_Dr: Tensor, mix: Mix, decay: float | None, top_k: int = 0
) -> Distances:
    """Weighted mean over slots of ``mix``'s terms between p_d = softmax(h head^T + m markov^T) and the target's p_t.

    The frozen ``head`` serves drafter and target alike. ``decay``: weights are
    exp(-(k-1)/decay); None: ``paced``. ``top_k``: only so many of the largest base logits get the second summand (0:
    all do). Probabilities are fp32 or better.
    """
    fused: Any = _Fused.apply  # untyped in torch
    loss, rows = fused(slots.hidden, slots.summed, markov_Dr, head, slots[2:], mix, decay, top_k)
    return Distances(loss, *rows)


def unrolled_loss(slots: Slots, head: Outputs, markov_Dr: Tensor, mix: Mix, decay: float, top_k: int = 0) -> Distances:
    """Each step's mean over its own supervised slots, weighing ``decay`` to the power of its number, summed.

    Steps are ``slots.places``; ``weights`` are shares of that sum and sum to one like those of ``distribution_loss``,
    which says what the arguments are.
    """
    rows_4N, losses = slots.log_mass.new_zeros(4, len(slots.places)), []
    for step in slots.places.unique().tolist():
        mine = (slots.places == step).nonzero()[:, 0]
        alone = Slots(*(each[mine] for each in slots))._replace(places=torch.zeros_like(mine))
        found, weight = distribution_loss(alone, head, markov_Dr, mix, 1.0, top_k), decay**step
        losses.append(weight * found.loss)
        rows_4N[:3, mine] = torch.stack(found[1:4]).to(rows_4N.dtype)
        rows_4N[3, mine] = weight / len(mine)
    rows_4N[3] /= rows_4N[3].sum()
    return Distances(torch.stack(losses).sum(), *rows_4N)


def paced(accepted_C: Tensor, places_C: Tensor) -> Tensor:
    """Weights ``[C]`` after D-PACE (arXiv 2605.18810): what a slot's log-acceptance adds to the accepted length.

    ``w_i = sum_{k>=i} prod_{j<=k} a_j``, the derivative of the expected number of accepted drafts by log a_i, with the
    slot's present acceptance a = 1 - L1 / 2. ``C`` slots of whole blocks; their supervised slots come first.
    """
    block_C = (places_C == 0).cumsum(dim=0) - 1
    accepted_XK = accepted_C.new_zeros(int(block_C[-1]) + 1, int(places_C.max()) + 1)
    accepted_XK[block_C, places_C] = accepted_C.clamp(0, 1)
    gained_XK = accepted_XK.cumprod(dim=1).flip(1).cumsum(dim=1).flip(1)
    return gained_XK[block_C, places_C]


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
        head: Outputs,
        given: tuple[Tensor, ...],
        mix: Mix,
        decay: float | None,
        top_k: int,
    ) -> tuple[Tensor, Tensor]:
        target_Nd, log_mass_N, labels_N, places_N = given
        grads = torch.zeros_like(hidden_Nd), torch.zeros_like(summed_Nr), torch.zeros_like(markov_Dr)
        rows_4N = hidden_Nd.new_zeros(4, len(hidden_Nd))
        markov = Outputs(markov_Dr, head.tiled)
        for c in _chunks(places_N):
            logits_CD = head.logits(hidden_Nd[c])
            ids_Ck = logits_CD.topk(top_k, sorted=False).indices if 0 < top_k < logits_CD.shape[1] else None
            if ids_Ck is None:
                markov.add_logits(summed_Nr[c], logits_CD)
            else:
                logits_CD.scatter_add_(1, ids_Ck, markov.logits(summed_Nr[c]).gather(1, ids_Ck))
            terms_3C, grad_CD = _chunk(logits_CD, head.logits(target_Nd[c]), log_mass_N[c], labels_N[c], mix)
            places_C = places_N[c]
            weights_C = (places_C.to(terms_3C.dtype) / -decay).exp() if decay else paced(1 - terms_3C[2] / 2, places_C)
            rows_4N[:3, c], rows_4N[3, c] = terms_3C, weights_C
            weights_C1 = rows_4N[3, c, None]
            grads[0][c] = head.back(grad_CD).mul_(weights_C1)
            if ids_Ck is not None:  # no other logit depends on the sequential head
                grad_CD = torch.zeros_like(grad_CD).scatter_(1, ids_Ck, grad_CD.gather(1, ids_Ck))
            grads[1][c] = markov.back(grad_CD).mul_(weights_C1)
            grads[2].addmm_(grad_CD.T, summed_Nr[c] * weights_C1)
        ctx.weight = rows_4N[3].sum().clamp(min=1e-12)  # D-PACE weighs nothing where no first draft has a chance
        rows_4N[3] /= ctx.weight
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(rows_4N)
        per_slot_N = mix.hard_ce * rows_4N[0] + mix.soft_ce * rows_4N[1] + mix.l1 * rows_4N[2]
        return rows_4N[3] @ per_slot_N, rows_4N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.weight
        return (*(scale * grad for grad in ctx.saved_tensors), *(None,) * 5)


def _chunks(places_N: Tensor) -> Iterator[slice]:
    """Whole blocks, at most ``CHUNK`` slots together unless one block has more."""
    starts = [*(places_N == 0).nonzero()[:, 0].tolist(), len(places_N)]
    first = 0
    for start, following in zip(starts, starts[1:], strict=False):
        if following - first > CHUNK and start > first:
            yield slice(first, start)
            first = start
    yield slice(first, len(places_N))


def _chunk(
    logits_CD: Tensor, target_CD: Tensor, log_mass_C: Tensor, labels_C: Tensor, mix: Mix
) -> tuple[Tensor, Tensor]:
    """Terms ``[3, C]`` and the gradient of their mix with respect to the logits ``[C, D]``.

    Both matrices of logits may be overwritten.
    """
    if can_measure(logits_CD):
        mass_C, labels_C = log_mass_C.contiguous(), labels_C.contiguous()
        terms_3C = distances(logits_CD, target_CD, mass_C, labels_C, (mix.hard_ce, mix.soft_ce, mix.l1))
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
    return torch.stack((hard_C, soft_C, l1_C)), grad_CD
