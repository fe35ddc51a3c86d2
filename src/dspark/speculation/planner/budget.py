"""The asynchronous pair: how many drafts a step verifies comes from the past, which ones from the present.

The next step's batch is laid out before this one ends, so its size must be known ahead. What chooses it sees rounds
that are over alone, so it may search as widely as it likes; what ranks the present drafts can't change their number.

Legend: R requests, K drafts of a block, N drafts of all requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from dspark.speculation.planner.algorithm import checked, rates_of
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.plan import FEW, Plan, Present
from dspark.speculation.rows import Counts, Numbers


@dataclass(frozen=True)
class Budget:
    """How many drafts of all requests a step verifies, and the tokens a second that the past promises for it."""

    drafts: int
    rate: float


def capacity(
    past: Past, slots: Counts, seconds: Numbers, length: int | None = None, *, others: int = 0, literal: bool = False
) -> Budget:
    """The budget that would have served the past best, over all of them (a search without a stop).

    ``slots [R]`` of the requests that will draft, ``seconds [R*K+1]`` of complete rounds as for ``early_stopped``;
    ``length``: K, that of the longest blocks if None;
    ``others``: requests of the step that will not draft.
    ``literal``: from the confidences as they were in each request's last round of ``past`` (section 5.3: of two steps
    ago, if that is where the past ends), in place of an average over several.
    """
    survival = past.as_last_seen(slots, length) if literal else past.averaged(slots, length)
    requests = len(slots) + others
    if len(survival) > FEW:
        rates = rates_of(requests, survival, seconds)
        drafts = int(rates.argmax())
        return Budget(drafts, float(rates[drafts]))
    expected = [*accumulate(survival.tolist(), initial=requests)]
    found = [tokens / each for tokens, each in zip(expected, checked(seconds, len(survival)).tolist(), strict=True)]
    best = max(found)
    return Budget(found.index(best), best)


def admit(current: Present, budget: Budget) -> Plan:
    """The drafts most likely to stand, as many as the budget has."""
    _, whose_N = current.ranked()
    return Plan.first(whose_N, budget.drafts, current.requests)
