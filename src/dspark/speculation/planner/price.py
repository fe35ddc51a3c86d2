"""The price form, for an engine that need not know the size of a step ahead.

A draft is verified where what it promises is worth the time it takes: a_{r,k} > lambda, lambda being the tokens a
second of the past times the seconds that one more token adds. What is free is taken.

Legend: N drafts of all requests.
"""

from __future__ import annotations

import numpy as np

from dspark.speculation.planner.plan import Numbers, Plan, Present


def worth_their_price(present: Present, rate: float, seconds: Numbers, slopes: Numbers) -> Plan:
    """Drafts in the order of their survival up to the first that is not worth it.

    ``rate``: tokens a second, from the past alone; ``seconds [N+1]`` of complete rounds as for ``early_stopped``;
    ``slopes [N]``: seconds that draft n+1 adds, with stairs smoothed out (``convex_slopes``), or a stair would stop the
    walk that the next steps would pay for. From there it goes on by the seconds themselves, to the end of the stair
    that it stands on. It looks at nothing behind where it stops, so it is lossless like Algorithm 1.
    """
    survival_N, whose_N = present.ranked()
    drafts = _worth(survival_N, rate * slopes)
    drafts += _worth(survival_N[drafts:], rate * np.diff(seconds)[drafts:])
    return Plan.first(whose_N, drafts, present.requests)


def _worth(survival_N: Numbers, prices: Numbers) -> int:
    """How many of the first are above their price."""
    too_dear = np.flatnonzero(survival_N <= prices[: len(survival_N)])
    return int(too_dear[0]) if len(too_dear) else len(survival_N)


def convex_slopes(seconds: Numbers) -> Numbers:
    """Slopes ``[N]`` of the greatest convex curve that lies nowhere above ``seconds [N+1]``."""
    steps, last = np.diff(seconds), len(seconds) - 1
    # A corner of the convex curve is one where ``seconds`` turn upwards; a measured curve has few, lines between knots.
    turns = np.flatnonzero(np.diff(steps) > 1e-12 * seconds[-1]) + 1
    corners: list[int] = []
    for n in dict.fromkeys((0, *turns.tolist(), last)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (seconds[b] - seconds[a]) * (n - b) < (seconds[n] - seconds[b]) * (b - a):
                break
            corners.pop()
        corners.append(n)
    slopes: Numbers = np.repeat(np.diff(seconds[corners]) / np.diff(corners), np.diff(corners))
    return slopes
