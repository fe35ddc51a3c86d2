"""How likely the target held what was written: log-probabilities of its own logits, before a request's settings.

Legend: N rows of a request's round, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """Of a token of an answer, and the likeliest ids at its place, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of the first ``len(tokens)`` rows, each with the ``top`` likeliest ids (ties by the backend's choice)."""
    logs_NV = logits_NV[: len(tokens)].float().log_softmax(dim=-1)
    best = logs_NV.topk(min(top, logs_NV.shape[-1]), dim=-1)
    return [
        TokenLogprob(token, float(row_V[token]), tuple(zip(ids, values, strict=True)))
        for token, row_V, ids, values in zip(tokens, logs_NV, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
