"""The one definition of a sampling distribution, used for target and draft alike.

Losslessness needs p_d and p_t to be made by the same function in the same precision (spec section 1), so
every probability of the package comes from `distribution`. Temperature, then top-k, top-p and min-p. All
ties are settled by the lower token id: the result is a function of the logits, never of a sort's internals.

Shapes: `_V` vocabulary (or a draft's support), `_RV` rows of it; leading dimensions are free in public
functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.kernels.law import can_make_law, law

# Below this a temperature is greedy in all but name, and logits / temperature leaves the range of fp32; above the other
# all tokens are equally likely, and 1 / temperature leaves it.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-5, 1e6
# Width of the first search for the nucleus; most rows of a language model end well inside it.
_FIRST_TOP_P_WIDTH = 128
# Logits that are searched at once for the largest.
_CHUNK = 128


@dataclass(frozen=True)
class Sampling:
    """How a request turns logits into probabilities.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. Raises UserError for values outside the domain.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        t = self.temperature
        if t != 0 and not _LOWEST_TEMPERATURE <= t <= _HIGHEST_TEMPERATURE:
            ends = f"{_LOWEST_TEMPERATURE:g} to {_HIGHEST_TEMPERATURE:g}"
            raise UserError(f"temperature is {t}; expected 0 (greedy) or a number from {ends}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; expected 0 (off) or a positive whole number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; expected a number in (0, 1], 1 switches it off")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p is {self.min_p}; expected a number in [0, 1), 0 switches it off")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def greedy_ids(logits: Tensor) -> Tensor:
    """Ids of the largest logits, the lowest id at ties: logits[..., V] -> int64[...].

    torch.argmax leaves the choice among ties to the backend; this does not. ArithmeticError for rows that hold NaN,
    +inf, or nothing but -inf.
    """
    width = logits.shape[-1]
    if width > _CHUNK and width % _CHUNK == 0:  # the first best chunk, then the first best in it: one pass over V
        chunks = logits.unflatten(-1, (-1, _CHUNK))
        best = greedy_ids(chunks.amax(dim=-1))
        inside = chunks.take_along_dim(best[..., None, None], dim=-2).squeeze(-2)
        return best * _CHUNK + greedy_ids(inside)
    ids = torch.arange(width, dtype=torch.int32, device=logits.device)
    top = logits.amax(dim=-1, keepdim=True)
    first = torch.where(logits == top, ids, width).amin(dim=-1)
    if not bool(top.isfinite().all()):  # the largest of NaN and anything is NaN
        raise ArithmeticError("logits hold NaN or infinity: the model's forward pass is broken for this input")
    return first.long()


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities that a token is sampled from: logits[..., V] -> p[..., V].

    fp32 for fp32 and narrower logits (the rounding of a narrower head happened before and is part of the
    definition), float64 for float64. Temperature 0 gives the one-hot of `greedy_ids`. top-k keeps exactly
    min(k, V) tokens; top-p keeps the smallest prefix, in the order (-p, id), whose mass reaches top_p; min-p
    keeps the tokens with at least min_p times the probability of the likeliest.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if sampling.greedy:
        one_hot = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
        return one_hot.scatter_(-1, greedy_ids(logits).unsqueeze(-1), 1.0)
    logits_RV = logits.reshape(-1, logits.shape[-1]).to(dtype).contiguous()
    if 0 < sampling.top_k < logits_RV.shape[-1]:
        logits_RV = logits_RV.masked_fill(~_top_k(logits_RV, sampling.top_k), -math.inf)
    if can_make_law(logits_RV):
        p_RV = law(logits_RV, sampling.temperature, sampling.top_p)
    else:
        # The maximum goes first, so that a low temperature sends losers to -inf and never the winner to +inf.
        scaled_RV = (logits_RV - logits_RV.amax(dim=-1, keepdim=True)) / sampling.temperature
        p_RV = torch.softmax(scaled_RV, dim=-1)
        if sampling.top_p < 1:
            p_RV = _only(p_RV, _nucleus(p_RV, sampling.top_p))
    if sampling.min_p > 0:
        p_RV = _only(p_RV, p_RV >= sampling.min_p * p_RV.amax(dim=-1, keepdim=True))
    return p_RV.reshape(logits.shape)


def _only(p_RV: Tensor, keep_RV: Tensor) -> Tensor:
    kept_RV = p_RV.masked_fill(~keep_RV, 0.0)
    return kept_RV / kept_RV.sum(dim=-1, keepdim=True)


def _top_k(values_RV: Tensor, k: int) -> Tensor:
    threshold_R = values_RV.topk(k, dim=-1, sorted=False).values.amin(dim=-1)
    return _first(values_RV, threshold_R, torch.full_like(threshold_R, k, dtype=torch.int64))


def _nucleus(p_RV: Tensor, top_p: float) -> Tensor:
    """Mask of the smallest prefix in the order (-p, id) whose mass reaches top_p.

    The vocabulary is never sorted: the largest `width` values are searched, wider only for rows that need it.
    """
    rows, vocabulary = p_RV.shape
    threshold_R = p_RV.new_zeros(rows)
    count_R = torch.full((rows,), vocabulary, dtype=torch.int64, device=p_RV.device)
    open_rows = torch.arange(rows, device=p_RV.device)
    width = min(_FIRST_TOP_P_WIDTH, vocabulary)
    while open_rows.numel():
        top = p_RV[open_rows].topk(width, dim=-1).values
        # Summed in float64 from the largest down: where the prefix ends depends on the values alone.
        short = (top.double().cumsum(dim=-1) < top_p).sum(dim=-1)
        # A row that rounding keeps below top_p for ever keeps every token.
        found = (short < width) | (width == vocabulary)
        last = short.clamp(max=width - 1)
        threshold_R[open_rows[found]] = top.gather(-1, last[:, None]).squeeze(-1)[found]
        count_R[open_rows[found]] = last[found] + 1
        open_rows = open_rows[~found]
        width = min(width * 8, vocabulary)
    return _first(p_RV, threshold_R, count_R)


def _first(values_RV: Tensor, threshold_R: Tensor, count_R: Tensor) -> Tensor:
    """Mask of the first `count` tokens in the order (-value, id), given the value of the last of them."""
    keep_RV = values_RV >= threshold_R[:, None]
    tied = (keep_RV.sum(dim=-1) > count_R).nonzero().squeeze(-1)
    if tied.numel():  # more candidates than places: the ones equal to the threshold enter by id
        values, threshold = values_RV[tied], threshold_R[tied, None]
        above, equal = values > threshold, values == threshold
        places = count_R[tied, None] - above.sum(dim=-1, keepdim=True)
        keep_RV[tied] = above | (equal & (equal.cumsum(dim=-1) <= places))
    return keep_RV
