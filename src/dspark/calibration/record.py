"""Rounds that verify every draft, recorded as the core decodes them: what was believed, and what became of it.

Legend: N rounds, K slots of a block, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dspark.calibration.outcomes import Flags, Numbers, Outcomes
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.decoding.work import Work
from dspark.drafters.drafter import Drafter
from dspark.foundation.artifacts import write_atomic
from dspark.foundation.errors import UserError, first_line
from dspark.speculation.loop import Draft
from dspark.speculation.rejection import Verdict
from dspark.speculation.sampling import Sampling, distribution
from dspark.targets.model import Target


@dataclass(frozen=True)
class Recorded:
    """Whole rounds: their ``outcomes``, the probability ``oracle [N, K]`` with which each draft really was to be
    accepted (c*, Eq. 8; of a greedy draft 0 or 1, of a coupled one NaN), and the number of the ``prompt [N]`` that they
    belong to.
    """

    outcomes: Outcomes
    oracle: Numbers
    prompt: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)

    def save(self, path: Path, judged: Flags) -> None:
        """As NumPy's arrays logits, peaks, accepted, oracle, prompt and ``judged [N]``, the rounds that judged maps."""

        def write(temporary: Path) -> None:
            outcomes = self.outcomes
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    logits=outcomes.logits,
                    peaks=outcomes.peaks,
                    accepted=outcomes.accepted,
                    oracle=self.oracle,
                    prompt=self.prompt,
                    judged=judged,
                )

        write_atomic(path, write)

    @classmethod
    def load(cls, path: Path) -> tuple[Recorded, Flags]:
        """What ``save`` wrote, and which of the rounds judged the maps; UserError for anything else."""
        names = ("logits", "peaks", "accepted", "oracle", "prompt", "judged")
        try:
            with np.load(path) as kept:
                logits, peaks, accepted, oracle, prompt, judged = (kept[name] for name in names)
            outcomes = Outcomes(logits, peaks, np.full_like(accepted, logits.shape[1]), accepted)
            count = len(outcomes)
            if oracle.shape != logits.shape or not len(prompt) == len(judged) == count or judged.dtype != np.bool_:
                raise ValueError(f"arrays for {count}, {len(oracle)}, {len(prompt)} and {len(judged)} rounds")
        except (OSError, EOFError, LookupError, TypeError, ValueError, BadZipFile, zlib.error) as error:
            raise UserError(f"{path} holds no recorded rounds ({first_line(error)}); record them again") from error
        return cls(outcomes, oracle, prompt), judged

    def at(self, rows: Flags) -> Recorded:
        """Some of the rounds."""
        return Recorded(self.outcomes.at(rows), self.oracle[rows], self.prompt[rows])


class Recorder:
    """Hears the verdicts of one drafter's rounds (``Engine``'s ``observe``) and keeps those of whole blocks, by the
    ``numbers`` of their requests' ids.

    Blocks that hold a stop id are left out, stood it or not: what is drafted behind it is nobody's answer. What is kept
    is Python's own numbers: small tensors would lie between a step's large ones, whose room could then never be given
    back (docs/lab_log.md).
    """

    def __init__(self, block: int, stop_ids: Iterable[int], numbers: Mapping[str, int]) -> None:
        self._block, self._stop_ids, self._numbers = block, frozenset(stop_ids), numbers
        self._logits: list[list[float]] = []
        self._peaks: list[list[float]] = []
        self._oracle: list[list[float]] = []
        self._accepted: list[int] = []
        self._prompt: list[int] = []

    def __call__(self, work: Work, verdict: Verdict, logits_nV: Tensor) -> None:
        draft, row = work.draft, work.row
        if work.length < self._block or draft.source != "drafter":
            return  # the first token, a copy, an answer near its limit or a shorter block
        if self._stop_ids & {*draft.tokens} and not row.request.ignore_stop:
            return
        assert draft.confidence is not None and draft.peaks is not None, "the drafter's own have both"
        self._logits.append([*draft.confidence])
        self._peaks.append([*draft.peaks])
        known = [float("nan")] * self._block
        if row.coupling is None:
            known = chances(draft, verdict, logits_nV[:-1], row.request.sampling).tolist()
        self._oracle.append(known)
        self._accepted.append(verdict.accepted)
        self._prompt.append(self._numbers[row.request.id])

    def recorded(self) -> Recorded:
        """All that was heard, be it nothing."""
        lists = self._logits, self._peaks, self._oracle
        logits, peaks, oracle = (np.array(each, dtype=np.float64).reshape(-1, self._block) for each in lists)
        accepted, prompt = (np.array(each, dtype=np.int64) for each in (self._accepted, self._prompt))
        return Recorded(Outcomes(logits, peaks, np.full_like(accepted, self._block), accepted), oracle, prompt)


def record(
    target: Target, drafter: Drafter, requests: Iterable[Request], limits: Limits, done: Callable[[int], None]
) -> Recorded:
    """Answer ``requests`` with whole blocks and no copies; ``done`` is told how many answers are finished.

    UserError where no round verifies a whole block.
    """
    asked = list(requests)
    numbers = {request.id: i for i, request in enumerate(asked)}
    recorder = Recorder(drafter.config.block_size, target.stop_ids, numbers)
    engine = Engine(target, asked, limits, "dspark", drafter, lookup=False, observe=recorder)
    for count, _ in enumerate(engine.run(), 1):
        done(count)
    recorded = recorder.recorded()
    if not len(recorded):
        raise UserError("no round verified a whole block: the answers are too short; give more --max-tokens")
    return recorded


def chances(draft: Draft, verdict: Verdict, logits_KV: Tensor, sampling: Sampling) -> Tensor:
    """c*_k ``float64 [K]`` (Eq. 8): the mass that p_d and p_t share before each draft.

    Of a greedy draft 1 where it stands and 0 from the first that does not, behind which nobody asks.
    """
    if draft.probs is None or sampling.greedy:
        return (torch.arange(len(draft.tokens)) < verdict.accepted).double()
    p_t_KV = distribution(logits_KV, sampling).double()
    p_d_KS = draft.probs.to(p_t_KV)
    own_KS = p_t_KV if draft.support is None else p_t_KV[:, draft.support]
    return torch.minimum(p_d_KS, own_KS).sum(dim=1)
