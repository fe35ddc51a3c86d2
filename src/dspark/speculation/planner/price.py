"""The price form, for an engine that need not know the size of a step ahead.

A draft is verified where what it promises is worth the time it takes: a_{r,k} > lambda, lambda being the tokens a
second of the past times the seconds that one more token adds. What is free is taken.

Legend: N drafts of all requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from dspark.speculation.planner.plan import FEW, Plan, Present, Ranked
from dspark.speculation.rows import Numbers


@dataclass(frozen=True, eq=False)
class Prices:
    """Seconds that draft n+1 adds to a complete round, ``[N]``: ``steps`` as they are, and ``slopes`` with stairs
    smoothed out, or a stair would stop a walk that the next steps would pay for.
    """

    steps: Numbers
    slopes: Numbers

    @cached_property
    def lists(self) -> tuple[list[float], list[float]]:
        """Both as numbers, for few drafts."""
        return self.slopes.tolist(), self.steps.tolist()

    @classmethod
    def of(cls, seconds: Numbers) -> Prices:
        """Of complete rounds that verify 0, 1, ... N drafts, ``[N+1]``."""
        return cls(np.diff(seconds), convex_slopes(seconds))


def worth_their_price(present: Present, rate: float, prices: Prices) -> Plan:
    """Drafts in the order of their survival up to the first that is not worth it.

    ``rate``: tokens a second, from the past alone. From where the smoothed prices end the walk it goes on by the
    seconds themselves, to the end of the stair that it stands on. It looks at nothing behind where it stops, so it is
    lossless like Algorithm 1.
    """
    survival_N, whose_N = present.ranked()
    slopes, steps = prices.lists if isinstance(survival_N, list) else (prices.slopes, prices.steps)
    drafts = _worth(survival_N, rate, slopes)
    drafts += _worth(survival_N[drafts:], rate, steps[drafts:])
    return Plan.first(whose_N, drafts, present.requests)


def _worth(survival_N: Ranked, rate: float, prices: Ranked) -> int:
    """How many of the first are above their price."""
    if isinstance(prices, np.ndarray):
        too_dear = np.flatnonzero(survival_N <= rate * prices[: len(survival_N)])
        return int(too_dear[0]) if len(too_dear) else len(survival_N)
    each = zip(survival_N, prices, strict=False)
    return next((n for n, (survival, price) in enumerate(each) if survival <= rate * price), len(survival_N))


def convex_slopes(seconds: Numbers) -> Numbers:
    """Slopes ``[N]`` of the greatest convex curve that lies nowhere above ``seconds [N+1]``."""
    last, heights = len(seconds) - 1, seconds.tolist()
    turns: Iterable[int] = range(1, last)
    if last > FEW:  # corners are where seconds turn upwards: a measured curve has few, lines between knots
        turns = (np.flatnonzero(np.diff(seconds, 2) > 1e-12 * heights[-1]) + 1).tolist()
    corners: list[int] = []
    for n in dict.fromkeys((0, *turns, last)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (heights[b] - heights[a]) * (n - b) < (heights[n] - heights[b]) * (b - a):
                break
            corners.pop()
        corners.append(n)
    slopes = [(heights[b] - heights[a]) / (b - a) for a, b in pairwise(corners)]
    return np.repeat(np.array(slopes), [b - a for a, b in pairwise(corners)])
