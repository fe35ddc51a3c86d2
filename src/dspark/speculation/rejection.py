"""Exact rejection sampling of a drafted chain (spec section 1).

Drafts are accepted from the left while U < min(1, p_t / p_d); the first rejection samples from the residual
norm(max(p_t - p_d, 0)); a fully accepted chain earns one more token from the target. p_d is the very tensor
that each draft was sampled from. The two formulas stand alone so that tests can break each of them.

Shapes: `_KV` drafted tokens times vocabulary, `_V` one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.speculation.draws import Draws, Purpose


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification: `accepted` drafts stand, `next_token` is the target's own."""

    accepted: int
    next_token: int


def verify(tokens: list[int], p_d: Tensor, p_t: Tensor, draws: Draws, round: int) -> Verdict:
    """Verify x_1..x_K: p_d[K, V] is what they were drawn from, p_t[K+1, V] the target's law before each and
    after.

    K = 0 is plain sampling from p_t[0]. The draws' slots are 0-based: k for draft k+1, K for the bonus.
    Raises ValueError where the shapes don't belong together or a draft has probability 0 under its own p_d.
    """
    vocabulary = p_t.shape[-1]
    if p_d.shape != (len(tokens), vocabulary) or p_t.shape[0] != len(tokens) + 1:
        raise ValueError(f"{len(tokens)} drafts, p_d {tuple(p_d.shape)}, p_t {tuple(p_t.shape)} do not fit")
    for k, token in enumerate(tokens):
        chance = acceptance(float(p_d[k, token]), float(p_t[k, token]))
        if not draws.bernoulli(chance, round=round, slot=k, purpose=Purpose.ACCEPT):
            rest_V = residual(p_d[k], p_t[k])
            return Verdict(k, draws.categorical(rest_V, round=round, slot=k, purpose=Purpose.RESIDUAL))
    last = len(tokens)
    return Verdict(last, draws.categorical(p_t[last], round=round, slot=last, purpose=Purpose.RESIDUAL))


def acceptance(p_d: float, p_t: float) -> float:
    """min(1, p_t / p_d) for one token, in float64, NaN if p_t is. ValueError for a token its draft can't have drawn."""
    if not p_d > 0:
        raise ValueError(f"a draft has probability {p_d} under p_d: p_d is not what it was drawn from")
    return min(p_t / p_d, 1.0)  # in this order NaN stays, which nothing is accepted with


def residual(p_d: Tensor, p_t: Tensor) -> Tensor:
    """norm(max(p_t - p_d, 0)) in float64, row by row: [..., V], [..., V] -> [..., V]; p_t where rounding leaves no
    mass.
    """
    rest = (p_t.double() - p_d.double()).clamp_(min=0)
    mass = rest.sum(dim=-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p_t.double())
