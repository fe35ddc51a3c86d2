"""Rounds of many requests planned together: what a step knows of its drafts, and what it learns when it is over.

Legend: R requests of a step, N of them whose drafts are read alike, K drafts of the longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np

from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, ConfidenceMap, Logistic, chances, chances_of_many, nearest
from dspark.speculation.loop import Draft
from dspark.speculation.planner.plan import FEW, Present
from dspark.speculation.planner.scheduler import Memory, Regime, Scheduler
from dspark.speculation.recalibration import Outcome, Recalibration, Tilt, all_after, all_tilted
from dspark.speculation.rows import Counts, as_long, side_by_side
from dspark.speculation.sampling import Sampling


class Reading(NamedTuple):
    """What a request's drafts say of themselves: ``logits`` and ``peaks [k]`` (0 where there are none), and the
    conditional ``chances [k]`` that these are believed to mean. ``regime``: whose map goes on learning from them, None
    where none does; ``own``: they are the drafter's.
    """

    own: bool
    regime: Regime | None
    logits: Sequence[float]
    peaks: Sequence[float]
    chances: Sequence[float]


@dataclass(frozen=True)
class Planned:
    """Drafts of a step and how many of each are verified.

    ``slots [R]`` of its requests; ``tilts [R]`` before the step; nothing of drafts where nobody has one.
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
        if not self.drafts:
            return 0.0
        return sum(sum(row[:length]) for row, length in zip(self.present.rows, self.lengths, strict=True))


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
        drafted = [draft.slots for draft in drafts]
        if not any(drafted):
            return self.nothing(slots)
        many = sum(drafted) > FEW  # by what was asked for, not by what came of it
        kinds = [(sampling, *_kind(draft)) for sampling, draft in zip(samplings, drafts, strict=True)]
        distinct: list[tuple[Sampling, Source, bool]] = []
        for kind in kinds:
            if kind not in distinct:  # to hash settings takes longer than to compare them
                distinct.append(kind)
        readings: list[Reading | None] = [None] * len(drafts)
        for kind in distinct:
            mine = [i for i, each in enumerate(kinds) if each == kind]
            of_kind = _read([drafts[i] for i in mine], many, *self._through(memory, *kind))
            for i, reading in zip(mine, of_kind, strict=True):
                readings[i] = reading
        tilts = tuple(memory.tilts[i] for i in slots.tolist())
        # Broken slots are counted as drafted and will not stand: how many there are must not depend on what was drawn.
        present = Present.of(_survival(drafts, many, readings, tilts))
        own = [count > 0 and draft.source == "drafter" for count, draft in zip(drafted, drafts, strict=True)]
        lengths = self.scheduler.plan(memory, present, slots, slots if all(own) else slots[own]).lengths
        return Planned(slots, tuple(drafts), tuple(readings), tilts, present, lengths)

    def nothing(self, slots: Counts) -> Planned:
        """Of a step in which nobody drafts."""
        return Planned(slots, (), (), (), _NOTHING, (0,) * len(slots))

    def after(self, memory: Memory, planned: Planned, rounds: Sequence[Round], ended: Counts) -> Memory:
        """When the step is over, ``rounds`` being what became of its drafts; ``ended``: slots that are free now."""
        if not planned.drafts:
            return self.scheduler.after(memory, _NOTHING, planned.slots, ended)
        outcomes = defaultdict[Regime, list[Outcome]](list)
        last: Regime | None = None
        for reading, round in zip(planned.readings, rounds, strict=True):
            if reading is None or reading.regime is None:
                continue
            if reading.regime is not last:  # to hash settings takes longer than all else
                last, those = reading.regime, outcomes[reading.regime]
            those.append(Outcome(reading.logits, reading.peaks, round.observed, round.accepted))
        tilts = _tilted_by(planned, rounds)
        own = [draft.source == "drafter" for draft in planned.drafts]
        over = planned.present
        if not all(own):  # copies come unasked
            over = Present.of([row if drafted else () for row, drafted in zip(over.rows, own, strict=True)])
        return self.scheduler.after(memory, over, planned.slots, ended, outcomes, tilts)

    def _through(
        self, memory: Memory, sampling: Sampling, source: Source, peaked: bool
    ) -> tuple[Regime | None, ConfidenceMap | None]:
        """How drafts of a kind are read, and whose map learns from them."""
        near = nearest(sampling, [each for each, of in memory.learned if of == source])
        if near is not None and (peaked or source == "lookup"):
            return (near, source), memory.learned[near, source].map
        return None, self.calibrations.of(sampling) if source == "drafter" else None


def _kind(draft: Draft) -> tuple[Source, bool]:
    """Who proposed it, and whether it says how sure it is of each token."""
    return draft.source, draft.peaks is not None


# Of ``many`` drafts what is asked of each is done in arrays, which takes less time than numbers one by one.


def _read(
    drafts: Sequence[Draft], many: bool, regime: Regime | None, through: ConfidenceMap | None
) -> list[Reading | None]:
    """What drafts of a kind say of themselves; None for one that says nothing."""
    said = [(i, draft.confidence, draft.peaks) for i, draft in enumerate(drafts) if draft.confidence is not None]
    readings: list[Reading | None] = [None] * len(drafts)
    if not said:
        return readings
    logits = [each for _, each, _ in said]
    shown = [[0.0] * len(each) if peaks is None else peaks for _, each, peaks in said]
    peaks = shown if regime is not None or said[0][2] is not None else [None] * len(said)
    if many:
        found = chances_of_many(through, logits, None if peaks[0] is None else shown)
    else:
        found = [chances(through, *both) for both in zip(logits, peaks, strict=True)]
    for (i, _, _), *known in zip(said, logits, shown, found, strict=True):
        readings[i] = Reading(drafts[i].source == "drafter", regime, *known)
    return readings


def _survival(
    drafts: Sequence[Draft], many: bool, readings: Sequence[Reading | None], tilts: Sequence[Tilt]
) -> Iterable[Sequence[float]]:
    """``a [k]`` of all slots of each. Of a draft that says nothing of itself nothing is known: it counts as certain."""
    each = zip(drafts, readings, strict=True)
    believed = [[1.0] * len(draft.tokens) if reading is None else reading.chances for draft, reading in each]
    own = [reading is not None and reading.own for reading in readings]
    found: Iterable[Iterable[float]]
    if many:
        c_RK, lengths = side_by_side(believed)
        c_RK = np.where(np.array(own)[:, None], all_tilted(tilts, c_RK), c_RK)
        found = as_long(c_RK.cumprod(axis=1), lengths)
    else:
        tilted = (tilt.tilted(c) if mine else c for mine, tilt, c in zip(own, tilts, believed, strict=True))
        found = (accumulate(c, mul) for c in tilted)
    return [[*row, *[0.0] * (draft.slots - len(draft.tokens))] for row, draft in zip(found, drafts, strict=True)]


def _tilted_by(planned: Planned, rounds: Sequence[Round]) -> list[Tilt]:
    """Tilts ``[R]`` behind the step: of those who drafted by what became of it."""
    tilts = list(planned.tilts)
    mine = [(i, reading.chances) for i, reading in enumerate(planned.readings) if reading is not None and reading.own]
    before, believed = [tilts[i] for i, _ in mine], [c for _, c in mine]
    observed, accepted = [rounds[i].observed for i, _ in mine], [rounds[i].accepted for i, _ in mine]
    if planned.present.drafts > FEW:
        moved = all_after(before, believed, observed, accepted)
    else:
        each = zip(before, believed, observed, accepted, strict=True)
        moved = [tilt.after(c, known, stood) for tilt, c, known, stood in each]
    for (i, _), tilt in zip(mine, moved, strict=True):
        tilts[i] = tilt
    return tilts
