"""The reference loop for many requests whose rounds are planned together: the oracle of a scheduling engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dspark.speculation.acceptance import Round
from dspark.speculation.loop import OneRequest
from dspark.speculation.planner.joint import JointPlanning
from dspark.speculation.planner.scheduler import Memory


def generate_together(requests: Sequence[OneRequest], planning: JointPlanning, block: int) -> Iterator[list[Round]]:
    """Yield the rounds of each step, one for every request that is under way; ``block``: drafts of a round at most.

    Each request's tokens have the law of plain decoding, and the requests are independent of each other.
    """
    yield [request.start() for request in requests]
    memory = planning.begin(len(requests), block)
    while not all(request.finished for request in requests):
        rounds, memory = step(requests, planning, memory)
        yield rounds


def step(requests: Sequence[OneRequest], planning: JointPlanning, memory: Memory) -> tuple[list[Round], Memory]:
    """A round of everybody under way; a request's slot is its number. Whoever can makes copies, and whom the
    scheduler asks drafts.
    """
    slots = np.array([i for i, request in enumerate(requests) if not request.finished], dtype=np.int64)
    asked, memory = planning.scheduler.drafts(memory, slots)
    drafts = [requests[i].propose(drafting=i in asked, slots=memory.asks) for i in slots]
    planned = planning.plan(memory, slots, [requests[i].sampling for i in slots], drafts)
    rounds = [requests[i].settle(draft, n) for i, draft, n in zip(slots, drafts, planned.lengths, strict=True)]
    ended = slots[[each.finish is not None for each in rounds]]
    return rounds, planning.after(memory, planned, rounds, ended)
