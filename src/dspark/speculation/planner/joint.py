"""Rounds of many requests planned together: what a step knows of its drafts, and what it learns when it is over.

Legend: R requests of a step, K drafts of a block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, Logistic, nearest, sigmoid
from dspark.speculation.loop import Draft
from dspark.speculation.planner.plan import Counts, Numbers, Present
from dspark.speculation.planner.scheduler import Memory, Outcomes, Regime, Scheduler
from dspark.speculation.recalibration import Recalibration, Tilt
from dspark.speculation.sampling import Sampling

_NOTHING = Present.of([])


@dataclass(frozen=True)
class Reading:
    """What a draft says of itself: ``logits`` and ``peaks [K]``, and the ``conditional [K]`` that they are believed to
    mean; ``regime``: whose map goes on learning from it, None where none does.
    """

    regime: Regime | None
    logits: Numbers
    peaks: Numbers
    conditional: Numbers


@dataclass(frozen=True)
class Planned:
    """Drafts of a step and how many of each are verified.

    ``slots [R]`` of its requests; ``readings``: None of a draft that says nothing of itself; ``tilts`` before the step;
    nothing of all these where nobody has a draft.
    """

    slots: Counts
    drafts: tuple[Draft, ...]
    readings: tuple[Reading | None, ...]
    tilts: tuple[Tilt, ...]
    present: Present
    lengths: tuple[int, ...]

    @property
    def expected(self) -> float:
        """Drafts that are foretold to be accepted, of those that are verified."""
        survival = self.present.survival
        if not self.drafts:
            return 0.0
        verified = np.arange(survival.shape[1]) < np.array(self.lengths)[:, None]
        return float(survival[verified].sum())


@dataclass(frozen=True)
class JointPlanning:
    """A scheduler and how confidence is read: logistic maps of ``calibrations`` go on learning from all requests of
    their sampling, and each request's own rounds tilt them. Copies, of up to ``copies`` ids, are believed as they say
    at first, and learned of in the same way.
    """

    scheduler: Scheduler
    calibrations: Calibrations = Calibrations()
    copies: int = 7

    def begin(self, slots: int, block: int) -> Memory:
        """As ``Scheduler.begin``."""
        return self.scheduler.begin(slots, block, self._first())

    def plan(self, memory: Memory, slots: Counts, samplings: Sequence[Sampling], drafts: Sequence[Draft]) -> Planned:
        """How many drafts of each request are verified; none for a request that drafts nothing."""
        if not any(draft.tokens for draft in drafts):
            return Planned(slots, (), (), (), _NOTHING, (0,) * len(drafts))
        readings = tuple(self._read(memory, *each) for each in zip(samplings, drafts, strict=True))
        tilts = tuple(memory.tilts[i] for i in slots.tolist())
        present = Present.of([_survival(*each) for each in zip(drafts, readings, tilts, strict=True)])
        own = [bool(draft.tokens) and draft.source == "drafter" for draft in drafts]
        lengths = self.scheduler.plan(memory, present, slots, slots[own]).lengths
        return Planned(slots, tuple(drafts), readings, tilts, present, lengths)

    def after(self, memory: Memory, planned: Planned, rounds: Sequence[Round], ended: Counts) -> Memory:
        """When the step is over, ``rounds`` being what became of its drafts; ``ended``: slots that are free now."""
        if not planned.drafts:
            return self.scheduler.after(memory, _NOTHING, planned.slots, ended)
        together = zip(planned.drafts, planned.readings, planned.tilts, rounds, strict=True)
        tilts = [
            tilt
            if reading is None or draft.source == "lookup"
            else tilt.after(reading.conditional, min(round.observed, len(draft.tokens)), round.accepted)
            for draft, reading, tilt, round in together
        ]
        own = np.array([draft.source == "drafter" for draft in planned.drafts], dtype=bool)
        over = Present(planned.present.survival, np.where(own, planned.present.drafted, 0))  # copies come unasked
        outcomes = _outcomes(planned, rounds, memory)
        return self.scheduler.after(memory, over, planned.slots, ended, outcomes, tilts)

    def _first(self) -> dict[Regime, Recalibration]:
        """Every map that goes on learning, as it begins."""
        as_said = Logistic((1.0,) * self.copies, (0.0,) * self.copies, (0.0,) * self.copies)
        maps = self.calibrations.maps
        begun = {regime: Recalibration.begin(as_said) for regime in _copied((Sampling(), Sampling(1.0), *maps))}
        for sampling, each in maps.items():
            if isinstance(each, Logistic):
                begun[sampling, "drafter"] = Recalibration.begin(each)
        return begun

    def _read(self, memory: Memory, sampling: Sampling, draft: Draft) -> Reading | None:
        if draft.confidence is None:
            return None
        logits = draft.confidence.double().cpu().numpy()
        peaks = np.zeros_like(logits) if draft.peaks is None else draft.peaks.double().cpu().numpy()
        regime = _regime(memory, sampling, draft.source)
        if regime is not None and (draft.peaks is not None or draft.source == "lookup"):
            return Reading(regime, logits, peaks, memory.learned[regime].conditional(logits, peaks))
        through = self.calibrations.of(sampling) if draft.source == "drafter" else None
        return Reading(None, logits, peaks, sigmoid(logits) if through is None else through.conditional(logits, peaks))


def _copied(samplings: Sequence[Sampling]) -> list[Regime]:
    return [(sampling, "lookup") for sampling in samplings]


def _regime(memory: Memory, sampling: Sampling, source: Source) -> Regime | None:
    """Whose map a draft of such a request is read through, of those that go on learning."""
    near = nearest(sampling, [each for each, of in memory.learned if of == source])
    return None if near is None else (near, source)


def _survival(draft: Draft, reading: Reading | None, tilt: Tilt) -> list[float]:
    if reading is None:  # of a draft that says nothing of itself nothing is known: it counts as certain
        return [1.0] * len(draft.tokens)
    believed = reading.conditional if draft.source == "lookup" else tilt.conditional(reading.conditional)
    survival: list[float] = believed.cumprod().tolist()
    return survival


def _outcomes(planned: Planned, rounds: Sequence[Round], memory: Memory) -> dict[Regime, Outcomes]:
    """What became of the drafts, by the map that learns from it."""
    known: dict[Regime, list[tuple[Reading, Round]]] = defaultdict(list)
    for reading, round in zip(planned.readings, rounds, strict=True):
        if reading is not None and reading.regime is not None:
            known[reading.regime].append((reading, round))
    return {regime: _stacked(some, memory.learned[regime].block) for regime, some in known.items()}


def _stacked(known: Sequence[tuple[Reading, Round]], block: int) -> Outcomes:
    """Of drafts that may be shorter than ``block``; behind their ends nothing is observed."""
    logits, peaks = np.zeros((2, len(known), block))
    for i, (reading, _) in enumerate(known):
        logits[i, : len(reading.logits)] = reading.logits
        peaks[i, : len(reading.peaks)] = reading.peaks
    observed, accepted = (np.array([getattr(round, name) for _, round in known]) for name in ("observed", "accepted"))
    return logits, peaks, observed, accepted
