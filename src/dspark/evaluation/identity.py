"""Whether texts with and without drafting are identical, and whether a difference is a numerical tie.

Greedy and coupled texts are plain's own in exact arithmetic. In floating point the target's logits depend a little
on how many rows run together, so where two tokens all but tie the texts may part; anything else is a fault. Only
the first difference of two texts is judged: behind it they are different texts.

Shapes: `_V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dspark.speculation.coupling import Coupling
from dspark.speculation.loop import TargetState
from dspark.speculation.sampling import Sampling, distribution

# fp32 (and float64): a wider gap than this is no matter of the order of summation.
_FP32_GAP = 1e-4
# Narrow formats: logits are rounded to this many significant bits, so a gap is counted in their last place.
_NARROW_ULPS = 2

# (index of an output token, plain's logits[V] for it) -> scores[V], of which the token has the largest. What rounding
# changes of a logit it changes of its score.
Scores = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """Two texts of one prompt. `position` is the index of the first different output token, None where equal.

    `gap` is how far the score of the worse of the two tokens lies below plain's top score there, `allowed`
    the most that rounding explains. Both are None where a text just ends early, which rounding never
    explains.
    """

    position: int | None = None
    gap: float | None = None
    allowed: float | None = None

    @property
    def equal(self) -> bool:
        return self.position is None

    @property
    def unexplained(self) -> bool:
        """A difference that no tie explains: a failure of losslessness."""
        if self.equal:
            return False
        return self.gap is None or self.allowed is None or not self.gap <= self.allowed


@dataclass
class IdentityTally:
    """Pooled over prompts; the record that every --json calls `identical`.

    `gaps`: at each first difference, how far the worse of the two tokens lay below plain's top score.
    """

    equal: int = 0
    total: int = 0
    unexplained: int = 0
    gaps: list[float] = field(default_factory=list)

    def add(self, comparison: Comparison) -> None:
        """Count one prompt; the gap at a first difference is kept for the report."""
        self.total += 1
        self.equal += comparison.equal
        self.unexplained += comparison.unexplained
        if comparison.gap is not None:
            self.gaps.append(comparison.gap)

    def as_json(self) -> dict[str, int]:
        return {"equal": self.equal, "total": self.total, "unexplained": self.unexplained}


def greedy_scores(position: int, logits_V: Tensor) -> Tensor:
    """The logits themselves."""
    return logits_V


def coupled_scores(coupling: Coupling, sampling: Sampling) -> Scores:
    """Temperature times (log p + Gumbel noise): logits that the request's noise has moved, -inf for ids that top-k,
    top-p or min-p drop. An id that only rounding has dropped or kept is not told from others.
    """

    def scores(position: int, logits_V: Tensor) -> Tensor:
        odds_V = coupling.odds(distribution(logits_V[None], sampling), position)[0]
        return odds_V.log() * sampling.temperature

    return scores


def judge(
    plain_ids: list[int],
    spec_ids: list[int],
    logits_at: Callable[[int], Tensor],
    dtype: torch.dtype,
    scores: Scores = greedy_scores,
) -> Comparison:
    """Compare the output ids of plain and speculative decoding of one prompt.

    logits_at(i) are plain's logits[V] for output token i; it is called at most once, at the first difference.
    dtype is the target's. Both tokens must lie within the allowed gap of the top score: this implies that
    plain's top-2 margin is within it, and refuses a third token beside a tie. fp32: gap below 1e-4; bf16: at
    most 2 ulps of the top logit.
    """
    if plain_ids == spec_ids:
        return Comparison()
    pairs = zip(plain_ids, spec_ids, strict=False)
    shorter = min(len(plain_ids), len(spec_ids))
    position = next((i for i, (plain, spec) in enumerate(pairs) if plain != spec), shorter)
    if position == shorter:
        return Comparison(position)
    logits_V = logits_at(position)
    scores_V = scores(position, logits_V).double()
    gap = float(scores_V.max() - scores_V[[plain_ids[position], spec_ids[position]]].min())
    return Comparison(position, gap, allowed_gap(float(logits_V.max()), dtype))


def allowed_gap(top: float, dtype: torch.dtype) -> float:
    """Largest gap below a top logit that the rounding of dtype explains."""
    if dtype in (torch.float32, torch.float64):
        return math.nextafter(_FP32_GAP, 0)  # the bound itself is outside
    _, exponent = math.frexp(top)  # |top| = m * 2^exponent, m in [0.5, 1)
    return _NARROW_ULPS * math.ldexp(torch.finfo(dtype).eps, exponent - 1)


def replay(
    new_target: Callable[[], TargetState], prompt_ids: list[int], plain_ids: list[int]
) -> Callable[[int], Tensor]:
    """logits_at for `judge`: runs a fresh target over plain's text, token by token as plain decoding did.

    A single prefill would be faster, and would round differently from the run that is judged.
    """

    def logits_at(position: int) -> Tensor:
        target = new_target()
        row_V = target.extend(prompt_ids, logits=1).logits_NV[-1]
        for token in plain_ids[:position]:
            row_V = target.extend([token], logits=1).logits_NV[-1]
        return row_V

    return logits_at
