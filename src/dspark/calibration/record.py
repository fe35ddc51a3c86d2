"""Rounds that verify every draft, recorded as the core decodes them: what was believed, and what became of it.

Legend: N rounds, K slots of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.calibration.outcomes import Outcomes
from dspark.decoding.engine import Engine, Limits, Work
from dspark.decoding.request import Request
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.artifacts import write_atomic
from dspark.foundation.errors import UserError
from dspark.speculation.loop import Draft
from dspark.speculation.rejection import Verdict
from dspark.speculation.sampling import Sampling, distribution
from dspark.targets.model import Target

Numbers = NDArray[np.float64]
NO_CONFIDENCE = "the drafter has no confidence head, so there is nothing to calibrate; train one with it"


@dataclass(frozen=True)
class Recorded:
    """Whole rounds: their ``outcomes``, the probability ``oracle [N, K]`` with which each draft really was to be
    accepted (c*, Eq. 8; of a greedy draft 0 or 1), and the number of the ``prompt [N]`` that they belong to.
    """

    outcomes: Outcomes
    oracle: Numbers
    prompt: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)

    def save(self, path: Path) -> None:
        """As NumPy's arrays logits, accepted, oracle and prompt."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    logits=self.outcomes.logits,
                    accepted=self.outcomes.accepted,
                    oracle=self.oracle,
                    prompt=self.prompt,
                )

        write_atomic(path, write)

    def half(self, odd: bool) -> Recorded:
        """Rounds of every other prompt."""
        rows = self.prompt % 2 == odd
        return Recorded(self.outcomes.at(rows), self.oracle[rows], self.prompt[rows])


@dataclass
class _Recorder:
    """Hears every verdict and keeps those of whole blocks."""

    block: int
    numbers: dict[str, int]
    stop_ids: frozenset[int]
    logits: list[Tensor] = field(default_factory=list)
    oracle: list[Tensor] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)

    def __call__(self, work: Work, verdict: Verdict, logits_nV: Tensor) -> None:
        draft = work.draft
        if work.length < self.block or self.stop_ids & {*draft.tokens[: verdict.accepted]}:
            return  # the first token, an answer near its limit, or drafts behind its end
        assert draft.confidence is not None, "asked for when the recording began"
        self.logits.append(draft.confidence.double().cpu())
        self.oracle.append(chances(draft, logits_nV[:-1], work.row.request.sampling).cpu())
        self.accepted.append(verdict.accepted)
        self.prompt.append(self.numbers[work.row.request.id])

    def recorded(self) -> Recorded:
        """All that was heard; UserError where that is nothing."""
        if not self.logits:
            raise UserError("no round verified a whole block: the answers are too short; give more --max-tokens")
        count = len(self.accepted)
        outcomes = Outcomes(torch.stack(self.logits).numpy(), np.full(count, self.block), np.array(self.accepted))
        return Recorded(outcomes, torch.stack(self.oracle).numpy(), np.array(self.prompt))


def record(
    target: Target, drafter: DSparkDrafter, requests: Iterable[Request], limits: Limits, done: Callable[[int], None]
) -> Recorded:
    """Answer ``requests`` with whole blocks and no copies; ``done`` is told how many answers are finished.

    UserError for a drafter without a confidence head.
    """
    if drafter.confidence_head is None:
        raise UserError(NO_CONFIDENCE)
    asked = list(requests)
    numbers = {request.id: i for i, request in enumerate(asked)}
    recorder = _Recorder(drafter.config.block_size, numbers, frozenset(target.stop_ids))
    engine = Engine(target, asked, limits, "dspark", drafter, lookup=False, observe=recorder)
    for count, _ in enumerate(engine.run(), 1):
        done(count)
    return recorder.recorded()


def chances(draft: Draft, logits_KV: Tensor, sampling: Sampling) -> Tensor:
    """c*_k ``float64 [K]`` (Eq. 8): the mass that p_d and p_t share before each draft; p_t of one that was certain."""
    p_t_KV = distribution(logits_KV, sampling).double()
    ids_K = torch.tensor(draft.tokens, device=p_t_KV.device)
    if draft.probs is None:
        return p_t_KV.gather(1, ids_K[:, None])[:, 0]
    p_d_KS = draft.probs.to(p_t_KV)
    own_KS = p_t_KV if draft.support is None else p_t_KV[:, draft.support]
    return torch.minimum(p_d_KS, own_KS).sum(dim=1)
