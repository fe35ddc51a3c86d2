"""What goes into the batched core and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from dspark.speculation.acceptance import Finish
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """One prompt to be answered; ``seed`` fixes every draw of its answer."""

    id: str
    prompt_ids: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Completion:
    """An answer exactly as it was sampled; ends with a stop id iff ``finish_reason`` is "stop"."""

    request: Request
    output_ids: list[int]
    finish_reason: Finish
