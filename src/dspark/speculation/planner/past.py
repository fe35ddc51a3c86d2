"""What rounds that are over have shown: all that may choose a budget, a price, or whether to draft at all.

A value: a step that is over gives a new one, and a pipeline that plans ahead plans with an older one.

Legend: R requests of a step, K drafts of the longest block, S slots for requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dspark.speculation.planner.plan import Counts, Numbers, Present

# What is left of a round's weight a round later, in a request's own average and in that of all; and how many rounds of
# its own a request needs to count as much as the others together.
_FADING, _FADING_OF_ALL, _SHRINKING = 0.9, 0.98, 4.0


@dataclass(frozen=True)
class Past:
    """Survival of drafts in rounds that are over, by the slot of the request.

    ``latest [S, K]``: of the last round that drafted (NaN: not seen); ``weight`` and ``total [S, K]``: of all of them,
    older ones fading; ``weight_of_all`` and ``total_of_all [K]``: of all requests.
    """

    latest: Numbers
    weight: Numbers
    total: Numbers
    weight_of_all: Numbers
    total_of_all: Numbers

    @classmethod
    def nothing(cls, slots: int, block: int) -> Past:
        """Before the first step, for ``slots`` requests at once and blocks of up to ``block`` drafts."""
        nothing = np.zeros((slots, block))
        return cls(np.full((slots, block), np.nan), nothing, nothing, np.zeros(block), np.zeros(block))

    def after(self, over: Present, slots: Counts) -> Past:
        """With a step that is over now; ``slots [R]`` of its requests."""
        if not over.drafted.any():
            return self
        block = self.latest.shape[1]
        seen = np.full((over.requests, block), np.nan)
        width = min(block, over.survival.shape[1])
        seen[:, :width] = np.where(np.arange(width) < over.drafted[:, None], over.survival[:, :width], np.nan)
        there, drafted = ~np.isnan(seen), over.drafted > 0
        weight, total, latest = self.weight.copy(), self.total.copy(), self.latest.copy()
        kept = np.where(there, _FADING, 1.0)
        weight[slots] = weight[slots] * kept + there
        total[slots] = total[slots] * kept + np.nan_to_num(seen)
        latest[slots[drafted]] = seen[drafted]
        kept_of_all = np.where(there.any(axis=0), _FADING_OF_ALL, 1.0)
        count = np.maximum(1, there.sum(axis=0))  # a step counts once, however many requests it had
        return Past(
            latest,
            weight,
            total,
            self.weight_of_all * kept_of_all + there.any(axis=0),
            self.total_of_all * kept_of_all + np.nansum(seen, axis=0) / count,
        )

    def without(self, slots: Counts) -> Past:
        """Where requests have ended and others will take their slots."""
        weight, total, latest = self.weight.copy(), self.total.copy(), self.latest.copy()
        weight[slots], total[slots], latest[slots] = 0.0, 0.0, np.nan
        return replace(self, latest=latest, weight=weight, total=total)

    def mean(self) -> Numbers:
        """Survival ``[K]`` to expect of a request that nothing is known of; 1 where nobody ever drafted."""
        mean = np.where(self.weight_of_all > 0, self.total_of_all / np.maximum(self.weight_of_all, 1e-300), 1.0)
        return np.minimum.accumulate(mean)

    def averaged(self, slots: Counts) -> Numbers:
        """Survival ``[R, K]`` to expect: a request's own average, shrunk to that of all."""
        own = (self.total[slots] + _SHRINKING * self.mean()) / (self.weight[slots] + _SHRINKING)
        expected: Numbers = np.minimum.accumulate(own, axis=1)
        return expected

    def as_last_seen(self, slots: Counts) -> Numbers:
        """Survival ``[R, K]`` just as the last round's confidences had it; the mean of all where a request is new."""
        latest = self.latest[slots]
        filled = np.where(np.isnan(latest), self.mean(), latest)
        expected: Numbers = np.minimum.accumulate(filled, axis=1)
        return expected
