"""What rounds that are over have shown: all that may choose a budget, a price, or whether to draft at all.

A value: a step that is over gives a new one, and a pipeline that plans ahead plans with an older one.

Legend: R requests of a step, K drafts of the longest block, S slots for requests, M remembered rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dspark.speculation.planner.plan import Counts, Numbers, Present

# Rounds of a request that are remembered, and what is left of a step's weight in the average of all a step later.
_REMEMBERED, _FADING = 4, 0.98
_NOTHING = 1e-12  # a survival that no other is measured by


@dataclass(frozen=True)
class Past:
    """Survival of drafts in rounds that are over.

    ``recent [S, M, K]``: of the last M rounds that drafted, by the slot of the request, the newest first (NaN: none);
    ``weight`` and ``total [K]``: of all requests, older steps fading.
    """

    recent: Numbers
    weight: Numbers
    total: Numbers

    @classmethod
    def nothing(cls, slots: int, block: int) -> Past:
        """Before the first step, for ``slots`` requests at once and blocks of up to ``block`` drafts."""
        return cls(np.full((slots, _REMEMBERED, block), np.nan), np.zeros(block), np.zeros(block))

    @property
    def block(self) -> int:
        """K."""
        return len(self.weight)

    @property
    def known(self) -> bool:
        """Whether anybody has drafted."""
        return bool(self.weight.any())

    def after(self, over: Present, slots: Counts) -> Past:
        """With a step that is over now; ``slots [R]`` of its requests."""
        drafted = over.drafted > 0
        if not drafted.any():
            return self.faded()
        width = min(self.block, over.survival.shape[1])
        seen = np.full((over.requests, self.block), np.nan)
        seen[:, :width] = np.where(np.arange(width) < over.drafted[:, None], over.survival[:, :width], np.nan)
        recent = self.recent.copy()
        recent[slots[drafted], 1:] = self.recent[slots[drafted], :-1]
        recent[slots[drafted], 0] = seen[drafted]
        there = ~np.isnan(seen)
        count = there.sum(axis=0)  # a step counts once, however many requests it had
        mean = np.nansum(seen, axis=0) / np.maximum(1, count)
        weight, total = self.weight * _FADING + (count > 0), self.total * _FADING + mean
        reach = int(np.flatnonzero(count)[-1])
        before = self.total[reach] / self.weight[reach] if self.weight[reach] else 0.0
        if before > _NOTHING:  # behind it a draft stands as often as it did once those before it stand
            total[reach + 1 :] *= total[reach] / weight[reach] / before
        return Past(recent, weight, total)

    def faded(self) -> Past:
        """With a step in which nobody drafted."""
        return replace(self, weight=_FADING * self.weight, total=_FADING * self.total)

    def forgotten(self) -> Past:
        """Where nobody drafted for so long that what requests have shown is no longer theirs; the mean of all stays."""
        return replace(self, recent=np.full_like(self.recent, np.nan))

    def without(self, slots: Counts) -> Past:
        """Where requests have ended and others will take their slots."""
        recent = self.recent.copy()
        recent[slots] = np.nan
        return replace(self, recent=recent)

    def mean(self) -> Numbers:
        """Survival ``[K]`` to expect of a request that nothing is known of; 1 where nobody ever drafted."""
        mean = np.where(self.weight > 0, self.total / np.maximum(self.weight, 1e-300), 1.0)
        return np.minimum.accumulate(mean)

    def averaged(self, slots: Counts, length: int | None = None) -> Numbers:
        """The ranked survival ``[R*K]`` to expect of a step: the mean of what the remembered rounds would have had.
        ``length``: K, that of the longest blocks if None.

        Ranking comes before averaging, since a budget goes to whoever is lucky in its own step. A request with fewer
        rounds counts as the mean of all in those it lacks.
        """
        recent_RMK = self.recent[slots]
        if np.isnan(recent_RMK[:, 0, 0]).all():  # nobody here has drafted, so all are the mean, which never rises
            return np.repeat(self.mean()[:length], len(slots))
        rounds_MRK = self._filled(recent_RMK)[..., :length].swapaxes(0, 1)
        ranked = np.sort(rounds_MRK.reshape(_REMEMBERED, -1), axis=1)[:, ::-1]
        expected: Numbers = ranked.mean(axis=0)
        return expected

    def as_last_seen(self, slots: Counts, length: int | None = None) -> Numbers:
        """The ranked survival ``[R*K]`` just as each request's last round had it; the mean of all where one is new."""
        ranked: Numbers = np.sort(self._filled(self.recent[slots, 0])[:, :length], axis=None)[::-1]
        return ranked

    def _filled(self, survival: Numbers) -> Numbers:
        """What is not known as the mean of all, behind a request's own last known position from there on; never rising
        along a block.
        """
        mean, unknown = self.mean(), np.isnan(survival)
        last = (~unknown).sum(axis=-1, keepdims=True) - 1
        own = np.take_along_axis(survival, last.clip(min=0), axis=-1)
        ratio = np.where(last < 0, 1.0, own / np.maximum(mean[last.clip(min=0)], 1e-300))
        filled: Numbers = np.minimum.accumulate(np.where(unknown, mean * ratio, survival), axis=-1)
        return filled
