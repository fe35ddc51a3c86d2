"""Algorithm 1: verify what raises the expected tokens a second, and stop at the first draft that does not.

Losslessness forbids a search over the whole block: a_k knows x_1..x_{k-1}, so the length that looks best in hindsight
depends on the very tokens whose verification it decides (App. A). Whoever walks down the order of survival and stops
where what was seen so far says so has decided about x_k before x_k or anything after it was looked at.

Legend: R requests, N drafts of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dspark.speculation.planner.plan import Plan, Present
from dspark.speculation.rows import Numbers


def early_stopped(present: Present, seconds: Numbers) -> Plan:
    """Algorithm 1 for a synchronous engine.

    ``seconds [N+1]``: what a complete round takes that verifies n of the drafts, for n = 0..N (or more): the
    reciprocal of the paper's SPS at B = R + n tokens.
    """
    survival_N, whose_N = present.ranked()
    rates = rates_of(present.requests, survival_N, seconds)
    no_better = np.flatnonzero(rates[1:] <= rates[:-1])
    return Plan.first(whose_N, int(no_better[0]) if len(no_better) else len(survival_N), present.requests)


def rates_of(requests: int, survival_N: Sequence[float] | Numbers, seconds: Numbers) -> Numbers:
    """Expected tokens a second ``[N+1]`` of rounds that verify the first n drafts; one token a request is certain.

    ValueError where there are fewer seconds than lengths, or they are none.
    """
    expected = np.cumsum(np.concatenate(((requests,), survival_N)))
    rates: Numbers = expected / checked(seconds, len(survival_N))
    return rates


def checked(seconds: Numbers, drafts: int) -> Numbers:
    """``[N+1]`` of as many drafts; ValueError where there are fewer, or some are none."""
    taken = seconds[: drafts + 1]
    if len(taken) <= drafts or not 0 < taken.min() <= taken.max() < np.inf:  # NaN is the least and the largest
        raise ValueError(f"{len(seconds)} seconds of rounds for up to {drafts} drafts: {seconds}")
    return taken
