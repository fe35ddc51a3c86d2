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
    walk that the next steps would pay for. Drafts that stand on the last one's stair cost nothing more and are taken as
    well, if they have any chance. The walk looks at nothing behind where it stops, so it is lossless like Algorithm 1.
    """
    survival_N, whose_N = present.ranked()
    count, drafts = len(survival_N), 0
    too_dear = np.flatnonzero(survival_N <= rate * slopes[:count])
    drafts = int(too_dear[0]) if len(too_dear) else count
    same_stair = int(np.searchsorted(seconds[: count + 1], seconds[drafts], side="right")) - 1
    with_a_chance = int(np.searchsorted(-survival_N, 0.0))
    return Plan.first(whose_N, max(drafts, min(same_stair, with_a_chance)), present.requests)


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
