"""The reference loop for many requests whose rounds are planned together: the oracle of a scheduling engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dspark.speculation.acceptance import Round
from dspark.speculation.confidence import ConfidenceMap
from dspark.speculation.loop import Draft, OneRequest
from dspark.speculation.planner.plan import Counts, Present
from dspark.speculation.planner.scheduler import Memory, Outcomes, Scheduler
from dspark.speculation.recalibration import Tilt


def generate_together(
    requests: Sequence[OneRequest], scheduler: Scheduler, block: int, calibration: ConfidenceMap | None = None
) -> Iterator[list[Round]]:
    """Yield the rounds of each step, one for every request that is under way; ``block``: drafts of a round at most;
    ``calibration``: how the drafter's confidence is read.

    Each request's tokens have the law of plain decoding, and the requests are independent of each other.
    """
    yield [request.start() for request in requests]
    memory = scheduler.begin(len(requests), block)
    while not all(request.finished for request in requests):
        rounds, memory = step(requests, scheduler, memory, calibration)
        yield rounds


def step(
    requests: Sequence[OneRequest], scheduler: Scheduler, memory: Memory, calibration: ConfidenceMap | None = None
) -> tuple[list[Round], Memory]:
    """A round of everybody under way; a request's slot is its number. What is learned goes before ``calibration``, and
    each request's own rounds tilt it.
    """
    slots = np.array([i for i, request in enumerate(requests) if not request.finished], dtype=np.int64)
    through = calibration if memory.learned is None else memory.learned.map
    asked, memory = scheduler.drafts(memory, slots)
    drafts = [requests[i].propose() if i in asked else Draft([]) for i in slots]
    tilts = [memory.tilts[i] for i in slots]
    present = Present.of([_survival(draft, through, tilt) for draft, tilt in zip(drafts, tilts, strict=True)])
    plan = scheduler.plan(memory, present, slots)
    rounds = [requests[i].settle(draft, n) for i, draft, n in zip(slots, drafts, plan.lengths, strict=True)]
    tilts = [draft.teaches(tilt, through, round) for draft, tilt, round in zip(drafts, tilts, rounds, strict=True)]
    return rounds, scheduler.after(memory, present, slots, _ended(slots, rounds), _outcomes(drafts, rounds), tilts)


def _survival(draft: Draft, through: ConfidenceMap | None, tilt: Tilt) -> list[float]:
    survival = draft.survival(through, tilt)
    # Of a draft that says nothing of itself nothing is known: it counts as certain.
    return [1.0] * len(draft.tokens) if survival is None else survival.tolist()


def _outcomes(drafts: Sequence[Draft], rounds: Sequence[Round]) -> Outcomes | None:
    """What became of the drafter's own drafts whose confidence is known; None where there are none."""
    known = [
        (draft.confidence, draft.peaks, each)
        for draft, each in zip(drafts, rounds, strict=True)
        if draft.confidence is not None and draft.peaks is not None and draft.source == "drafter"
    ]
    if not known:
        return None
    *evidence, some = zip(*known, strict=True)
    logits, peaks = (np.stack([each.double().cpu().numpy() for each in rows]) for rows in evidence)
    return logits, peaks, np.array([each.observed for each in some]), np.array([each.accepted for each in some])


def _ended(slots: Counts, rounds: Sequence[Round]) -> Counts:
    return slots[[each.finish is not None for each in rounds]]
