"""Rounds of many requests planned together: what a step knows of its drafts, and what it learns when it is over.

Legend: R requests of a step, N of them whose drafts are read alike, K drafts of the longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, ConfidenceMap, Logistic, nearest, sigmoid
from dspark.speculation.loop import Draft
from dspark.speculation.planner.plan import Counts, Numbers, Present
from dspark.speculation.planner.scheduler import Memory, Outcomes, Regime, Scheduler
from dspark.speculation.recalibration import Recalibration, Tilt, after_rounds, tilted
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Readings:
    """What drafts that are read alike say of themselves: ``members [N]`` of the step, their ``logits`` and ``peaks
    [N, K]`` (0 behind a shorter draft's end), and the ``conditional [N, K]`` that these are believed to mean.
    ``regime``: whose map goes on learning from them, None where none does; ``own``: they are the drafter's.
    """

    members: Counts
    own: bool
    regime: Regime | None
    logits: Numbers
    peaks: Numbers
    conditional: Numbers


@dataclass(frozen=True)
class Planned:
    """Drafts of a step and how many of each are verified.

    ``slots [R]`` of its requests; ``tilts [R]`` before the step; nothing of drafts where nobody has one.
    """

    slots: Counts
    drafts: tuple[Draft, ...]
    readings: tuple[Readings, ...]
    tilts: tuple[Tilt, ...]
    present: Present
    lengths: tuple[int, ...]

    @property
    def expected(self) -> float:
        """Drafts that are foretold to be accepted, of those that are verified."""
        if not self.drafts:
            return 0.0
        survival = self.present.survival
        verified = np.arange(survival.shape[1]) < np.array(self.lengths)[:, None]
        return float(survival[verified].sum())


_NOTHING = Present.of([])


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
        as_said = Logistic((1.0,) * self.copies, (0.0,) * self.copies, (0.0,) * self.copies)
        maps = self.calibrations.maps
        learned: dict[Regime, Recalibration] = {
            (sampling, "lookup"): Recalibration.begin(as_said) for sampling in (Sampling(), Sampling(1.0), *maps)
        }
        for sampling, each in maps.items():
            if isinstance(each, Logistic):
                learned[sampling, "drafter"] = Recalibration.begin(each)
        return self.scheduler.begin(slots, block, learned)

    def plan(self, memory: Memory, slots: Counts, samplings: Sequence[Sampling], drafts: Sequence[Draft]) -> Planned:
        """How many drafts of each request are verified; none for a request that drafts nothing."""
        if not any(draft.slots for draft in drafts):
            return Planned(slots, (), (), (), _NOTHING, (0,) * len(drafts))
        readings = self._read(memory, samplings, drafts)
        tilts = tuple(memory.tilts[i] for i in slots.tolist())
        # Broken slots are counted as drafted and will not stand: how many there are must not depend on what was drawn.
        drafted = np.array([draft.slots for draft in drafts], dtype=np.int64)
        # Of a draft that says nothing of itself nothing is known: it counts as certain.
        survival = np.ones((len(drafts), int(drafted.max())))
        for each in readings:
            believed_NK = each.conditional
            if each.own:
                believed_NK = tilted(believed_NK, np.array([[tilts[i].log_odds] for i in each.members.tolist()]))
            survival[each.members, : believed_NK.shape[1]] = believed_NK.cumprod(axis=1)
        for i, draft in enumerate(drafts):
            if draft.broken:
                survival[i, len(draft.tokens) :] = 0.0
        present = Present(survival, drafted)
        own = [bool(draft.slots) and draft.source == "drafter" for draft in drafts]
        lengths = self.scheduler.plan(memory, present, slots, slots[own]).lengths
        return Planned(slots, tuple(drafts), readings, tilts, present, lengths)

    def after(self, memory: Memory, planned: Planned, rounds: Sequence[Round], ended: Counts) -> Memory:
        """When the step is over, ``rounds`` being what became of its drafts; ``ended``: slots that are free now."""
        if not planned.drafts:
            return self.scheduler.after(memory, _NOTHING, planned.slots, ended)
        observed, accepted = np.array([(each.observed, each.accepted) for each in rounds], dtype=np.int64).T
        tilts, outcomes = list(planned.tilts), dict[Regime, Outcomes]()
        for each in planned.readings:
            seen, stood = observed[each.members], accepted[each.members]
            if each.own:
                before = [tilts[i] for i in each.members.tolist()]
                moved = after_rounds(before, each.conditional, seen, stood)
                for i, tilt in zip(each.members.tolist(), moved, strict=True):
                    tilts[i] = tilt
            if each.regime is not None:
                block = memory.learned[each.regime].block
                outcomes[each.regime] = _widened(each.logits, block), _widened(each.peaks, block), seen, stood
        own = np.array([draft.source == "drafter" for draft in planned.drafts], dtype=bool)
        over = Present(planned.present.survival, np.where(own, planned.present.drafted, 0))  # copies come unasked
        return self.scheduler.after(memory, over, planned.slots, ended, outcomes, tilts)

    def _read(self, memory: Memory, samplings: Sequence[Sampling], drafts: Sequence[Draft]) -> tuple[Readings, ...]:
        """All drafts that say something of themselves, by how they are read."""
        alike: dict[tuple[Sampling, Source, bool], list[int]] = defaultdict(list)
        for i, (sampling, draft) in enumerate(zip(samplings, drafts, strict=True)):
            if draft.confidence is not None:
                alike[sampling, draft.source, draft.peaks is not None].append(i)
        return tuple(self._alike(memory, kind, members, drafts) for kind, members in alike.items())

    def _alike(
        self, memory: Memory, kind: tuple[Sampling, Source, bool], members: Sequence[int], drafts: Sequence[Draft]
    ) -> Readings:
        sampling, source, peaked = kind
        logits = _padded([drafts[i].confidence for i in members])
        peaks = _padded([drafts[i].peaks for i in members]) if peaked else np.zeros_like(logits)
        near = nearest(sampling, [each for each, of in memory.learned if of == source])
        own, regime = source == "drafter", None if near is None else (near, source)
        if regime is not None and (peaked or not own):
            conditional = memory.learned[regime].conditional(logits, peaks)
        else:
            regime = None
            conditional = _through(self.calibrations.of(sampling) if own else None, logits, peaks if peaked else None)
        return Readings(np.array(members, dtype=np.int64), own, regime, logits, peaks, conditional)


def _through(calibration: ConfidenceMap | None, logits: Numbers, peaks: Numbers | None) -> Numbers:
    return sigmoid(logits) if calibration is None else calibration.conditional(logits, peaks)


def _padded(rows: Sequence[Tensor | None]) -> Numbers:
    """Rows of any lengths as ``[N, K]`` float64, zeros behind their ends."""
    there = [row.tolist() for row in rows if row is not None]
    width = max(map(len, there))
    return np.array([row + [0.0] * (width - len(row)) for row in there])


def _widened(values: Numbers, block: int) -> Numbers:
    """``[N, K]`` as ``[N, block]``; behind their ends nothing is observed."""
    if values.shape[1] >= block:
        return values
    wide = np.zeros((len(values), block))
    wide[:, : values.shape[1]] = values
    return wide
