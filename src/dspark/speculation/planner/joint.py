"""Rounds of many requests planned together: what a step knows of its drafts, and what it learns when it is over.

Legend: R requests of a step, N of them whose drafts are read alike, K drafts of the longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Calibrations, ConfidenceMap, Logistic, chances, nearest
from dspark.speculation.loop import Draft
from dspark.speculation.planner.plan import Counts, Present
from dspark.speculation.planner.scheduler import Memory, Regime, Scheduler
from dspark.speculation.recalibration import Outcome, Recalibration, Tilt
from dspark.speculation.sampling import Sampling


@dataclass(frozen=True)
class Reading:
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
        if not any(draft.slots for draft in drafts):
            return self.nothing(slots)
        kinds = [(sampling, *_kind(draft)) for sampling, draft in zip(samplings, drafts, strict=True)]
        if kinds.count(kinds[0]) == len(kinds):  # mostly; hashing settings takes longer than comparing them
            through = self._through(memory, *kinds[0])
            readings = tuple(_read(draft, *through) for draft in drafts)
        else:
            known = {kind: self._through(memory, *kind) for kind in dict.fromkeys(kinds)}
            readings = tuple(_read(draft, *known[kind]) for kind, draft in zip(kinds, drafts, strict=True))
        tilts = tuple(memory.tilts[i] for i in slots.tolist())
        # Broken slots are counted as drafted and will not stand: how many there are must not depend on what was drawn.
        present = Present.of([_survival(*each) for each in zip(drafts, readings, tilts, strict=True)])
        own = [bool(draft.slots) and draft.source == "drafter" for draft in drafts]
        lengths = self.scheduler.plan(memory, present, slots, slots if all(own) else slots[own]).lengths
        return Planned(slots, tuple(drafts), readings, tilts, present, lengths)

    def nothing(self, slots: Counts) -> Planned:
        """Of a step in which nobody drafts."""
        return Planned(slots, (), (), (), _NOTHING, (0,) * len(slots))

    def after(self, memory: Memory, planned: Planned, rounds: Sequence[Round], ended: Counts) -> Memory:
        """When the step is over, ``rounds`` being what became of its drafts; ``ended``: slots that are free now."""
        if not planned.drafts:
            return self.scheduler.after(memory, _NOTHING, planned.slots, ended)
        tilts, outcomes = list(planned.tilts), defaultdict[Regime, list[Outcome]](list)
        for i, (reading, round) in enumerate(zip(planned.readings, rounds, strict=True)):
            if reading is None:
                continue
            if reading.own:
                tilts[i] = tilts[i].after(reading.chances, round.observed, round.accepted)
            if reading.regime is not None:
                became = Outcome(reading.logits, reading.peaks, round.observed, round.accepted)
                outcomes[reading.regime].append(became)
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


def _read(draft: Draft, regime: Regime | None, through: ConfidenceMap | None) -> Reading | None:
    """What it says of itself; None for one that says nothing."""
    if draft.confidence is None:
        return None
    logits, peaks = draft.confidence, draft.peaks
    none = [0.0] * len(logits)
    own = draft.source == "drafter"
    found = chances(through, logits, none if peaks is None and regime is not None else peaks)
    return Reading(own, regime, logits, none if peaks is None else peaks, found)


def _survival(draft: Draft, reading: Reading | None, tilt: Tilt) -> list[float]:
    """``a [k]`` of all its slots. Of a draft that says nothing of itself nothing is known: it counts as certain."""
    broken = [0.0] * (draft.slots - len(draft.tokens))
    if reading is None:
        return [1.0] * len(draft.tokens) + broken
    believed = tilt.tilted(reading.chances) if reading.own else reading.chances
    return [*accumulate(believed, mul), *broken]
