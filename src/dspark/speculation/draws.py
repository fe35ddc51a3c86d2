"""Randomness of the law: two primitives, and the inverse CDF behind them.

Every draw is fresh per (seed, round, slot, purpose) and is a pure function of them, so the noise of a
discarded draft can't come back (noise keyed by position would leak through a lagged budget) and a request's
draws don't depend on its neighbours. Tests replace the source by one that walks every branch.

Shapes: `_V` vocabulary (or a draft's support), `_R` rows.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from dspark.kernels.law import can_make_law, invert_law

# fp32 softmax over a large vocabulary sums to one within about 1e-5; far beyond that it is no distribution.
_MASS_TOLERANCE = 1e-3


class Purpose(Enum):
    """What a draw decides: a drafted token, its acceptance, or the token that the target adds itself."""

    DRAFT = "draft"
    ACCEPT = "accept"
    RESIDUAL = "residual"


class Draws(Protocol):
    """Source of all randomness of one request."""

    def bernoulli(self, p: Tensor | float, *, round: int, slot: int, purpose: Purpose) -> bool:
        """True with probability p (a scalar in [0, 1])."""
        ...

    def categorical(self, p_V: Tensor, *, round: int, slot: int, purpose: Purpose) -> int:
        """An index drawn from p[V], which sums to one."""
        ...


class SeededDraws:
    """Counter-based draws: each uniform is a hash of (seed, round, slot, purpose), in any order of calls."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, *, round: int, slot: int, purpose: Purpose) -> float:
        """Uniform number of this key in [0, 1), 53 bits."""
        key = f"{self.seed}/{round}/{slot}/{purpose.value}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53

    def bernoulli(self, p: Tensor | float, *, round: int, slot: int, purpose: Purpose) -> bool:
        return self.uniform(round=round, slot=slot, purpose=purpose) < float(p)

    def categorical(self, p_V: Tensor, *, round: int, slot: int, purpose: Purpose) -> int:
        return invert(p_V, self.uniform(round=round, slot=slot, purpose=purpose))


class CertainDraws:
    """For laws that leave nothing to chance (temperature 0): outcomes are read off and no number is drawn.

    Raises ArithmeticError for a law that does leave something.
    """

    def bernoulli(self, p: Tensor | float, *, round: int, slot: int, purpose: Purpose) -> bool:
        chance = float(p)
        if chance not in (0.0, 1.0):
            raise ArithmeticError(f"a certain outcome has probability {chance}, expected 0 or 1")
        return chance == 1.0

    def categorical(self, p_V: Tensor, *, round: int, slot: int, purpose: Purpose) -> int:
        index = int(p_V.argmax())
        if float(p_V[index]) != 1.0:
            raise ArithmeticError(f"a certain outcome has probability {float(p_V[index])}, expected 1")
        return index


def invert(p_V: Tensor, u: float) -> int:
    """Inverse CDF in float64: the first index whose cumulative probability exceeds u, 0 <= u < 1.

    Never yields a token of probability 0. Raises ArithmeticError where p does not sum to one (up to the
    rounding of its dtype) or holds NaN: an unnormalised residual must not pass for a distribution.
    """
    return int(invert_rows(p_V[None], torch.tensor([u], dtype=torch.float64))[0])


def invert_rows(p_RV: Tensor, u_R: Tensor) -> Tensor:
    """`invert` for many rows: p[R, V], u[R] -> ids int64[R] on p's device, row for row the same ids."""
    if can_make_law(p_RV):
        ids_R, mass_R = invert_law(p_RV, u_R.double())
        check_mass(mass_R)
        return ids_R
    cdf_RV = p_RV.double().cumsum(dim=-1)
    mass_R1 = cdf_RV[:, -1:].contiguous()
    check_mass(mass_R1)
    # u is scaled by the mass, so the rounding of p's sum is shared out and not given to the last token.
    aim_R1 = u_R.to(p_RV.device, torch.float64)[:, None] * mass_R1
    ids_R1 = torch.searchsorted(cdf_RV, aim_R1, right=True).clamp_(max=p_RV.shape[-1] - 1)
    picked_R1 = p_RV.gather(-1, ids_R1)
    if bool((picked_R1 <= 0).any()):
        # u * mass rounded up to the mass itself, or a parallel scan that is not monotone: a 2^-53 event.
        ids_R1 = torch.where(picked_R1 > 0, ids_R1, p_RV.argmax(dim=-1, keepdim=True))
    return ids_R1.squeeze(-1)


def check_mass(mass: Tensor) -> None:
    """ArithmeticError where probabilities that sum to ``mass`` are no distribution."""
    if not bool(((mass - 1).abs() <= _MASS_TOLERANCE).all()):  # written so that NaN fails
        raise ArithmeticError(f"probabilities sum to {mass.flatten().tolist()[:8]}, expected 1")
