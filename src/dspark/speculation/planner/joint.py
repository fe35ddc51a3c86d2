"""Rounds of many requests planned together: what a step knows of its drafts, and what it learns when it is over.

Legend: R requests of a step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dspark.speculation.acceptance import Round
from dspark.speculation.confidence import Calibrations, ConfidenceMap, Logistic, nearest
from dspark.speculation.loop import Draft
from dspark.speculation.planner.plan import Counts, Present
from dspark.speculation.planner.scheduler import Memory, Outcomes, Scheduler
from dspark.speculation.recalibration import Recalibration, Tilt
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Planned:
    """Drafts of a step and how many of each are verified.

    ``slots [R]`` of its requests; ``regimes``: the sampling whose map goes on learning from each, None where none does;
    ``through``: how confidence was read; ``tilts`` before the step.
    """

    slots: Counts
    drafts: tuple[Draft, ...]
    regimes: tuple[Sampling | None, ...]
    through: tuple[ConfidenceMap | None, ...]
    tilts: tuple[Tilt, ...]
    present: Present
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class JointPlanning:
    """A scheduler and how confidence is read: logistic maps of ``calibrations`` go on learning from all requests of
    their sampling, and each request's own rounds tilt them.
    """

    scheduler: Scheduler
    calibrations: Calibrations = Calibrations()

    def begin(self, slots: int, block: int) -> Memory:
        """As ``Scheduler.begin``."""
        learned = {
            sampling: Recalibration.begin(each)
            for sampling, each in self.calibrations.maps.items()
            if isinstance(each, Logistic)
        }
        return self.scheduler.begin(slots, block, learned)

    def plan(self, memory: Memory, slots: Counts, samplings: Sequence[Sampling], drafts: Sequence[Draft]) -> Planned:
        """How many drafts of each request are verified; none for a request that drafts nothing."""
        regimes = tuple(nearest(each, memory.learned) for each in samplings)
        through = tuple(
            self.calibrations.of(sampling) if regime is None else memory.learned[regime].map
            for sampling, regime in zip(samplings, regimes, strict=True)
        )
        tilts = tuple(memory.tilts[i] for i in slots)
        present = Present.of([_survival(*each) for each in zip(drafts, through, tilts, strict=True)])
        own = [bool(draft.tokens) and draft.source == "drafter" for draft in drafts]
        lengths = self.scheduler.plan(memory, present, slots, slots[own]).lengths
        return Planned(slots, tuple(drafts), regimes, through, tilts, present, lengths)

    def after(self, memory: Memory, planned: Planned, rounds: Sequence[Round], ended: Counts) -> Memory:
        """When the step is over, ``rounds`` being what became of its drafts; ``ended``: slots that are free now."""
        together = zip(planned.drafts, planned.tilts, planned.through, rounds, strict=True)
        tilts = [draft.teaches(tilt, through, round) for draft, tilt, through, round in together]
        own = np.array([draft.source == "drafter" for draft in planned.drafts], dtype=bool)
        over = Present(planned.present.survival, np.where(own, planned.present.drafted, 0))  # copies come unasked
        outcomes = _outcomes(planned, rounds, memory.learned)
        return self.scheduler.after(memory, over, planned.slots, ended, outcomes, tilts)


def _survival(draft: Draft, through: ConfidenceMap | None, tilt: Tilt) -> list[float]:
    survival = draft.survival(through, tilt)
    # Of a draft that says nothing of itself nothing is known: it counts as certain.
    return [1.0] * len(draft.tokens) if survival is None else survival.tolist()


def _outcomes(
    planned: Planned, rounds: Sequence[Round], learned: Mapping[Sampling, Recalibration]
) -> dict[Sampling, Outcomes]:
    """What became of the drafter's own drafts whose confidence is known, by the sampling whose map learns from it."""
    known: dict[Sampling, list[tuple[Tensor, Tensor, Round]]] = defaultdict(list)
    for draft, regime, round in zip(planned.drafts, planned.regimes, rounds, strict=True):
        if (
            regime is not None
            and draft.confidence is not None
            and draft.peaks is not None
            and draft.source == "drafter"
        ):
            known[regime].append((draft.confidence, draft.peaks, round))
    return {regime: _stacked(some, learned[regime].block) for regime, some in known.items()}


def _stacked(known: Sequence[tuple[Tensor, Tensor, Round]], block: int) -> Outcomes:
    """Of blocks that may be shorter than ``block``; behind their ends nothing is observed."""
    logits, peaks = np.zeros((2, len(known), block))
    for i, (logits_K, peaks_K, _) in enumerate(known):
        logits[i, : len(logits_K)] = logits_K.double().cpu().numpy()
        peaks[i, : len(peaks_K)] = peaks_K.double().cpu().numpy()
    observed, accepted = (np.array([getattr(round, name) for *_, round in known]) for name in ("observed", "accepted"))
    return logits, peaks, observed, accepted
