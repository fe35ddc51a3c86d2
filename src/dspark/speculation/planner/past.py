"""What rounds that are over have shown: all that may choose a budget, a price, or whether to draft at all.

A value: a step that is over gives a new one, and a pipeline that plans ahead plans with an older one.

Legend: R requests of a step, K drafts of the longest block, S slots for requests, M remembered rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from dspark.speculation.planner.plan import FEW, Present, Survival
from dspark.speculation.rows import Counts, Numbers, side_by_side

# Rounds of a request that are remembered, and what is left of a step's weight in the average of all a step later.
_REMEMBERED, _FADING = 4, 0.98
_NOTHING = 1e-12  # a survival that no other is measured by


@dataclass(frozen=True)
class Past:
    """Survival of drafts in rounds that are over.

    ``recent [S][up to M]``: of the last rounds that drafted, by the slot of the request, the newest first; ``weight``
    and ``total [K]``: of all requests, older steps fading. Numbers by themselves: a step has few, and each is looked at
    once.
    """

    recent: tuple[tuple[Survival, ...], ...]
    weight: Survival
    total: Survival

    @classmethod
    def nothing(cls, slots: int, block: int) -> Past:
        """Before the first step, for ``slots`` requests at once and blocks of up to ``block`` drafts."""
        return cls(((),) * slots, (0.0,) * block, (0.0,) * block)

    @property
    def block(self) -> int:
        """K."""
        return len(self.weight)

    @property
    def known(self) -> bool:
        """Whether anybody has drafted."""
        return any(self.weight)

    def after(self, over: Present, slots: Counts) -> Past:
        """With a step that is over now; ``slots [R]`` of its requests."""
        reach = min(self.block, max(map(len, over.rows), default=0))
        if not reach:
            return self.faded()
        recent = [*self.recent]
        for slot, survival in zip(slots.tolist(), over.rows, strict=True):
            if survival:
                recent[slot] = (survival[:reach], *recent[slot][: _REMEMBERED - 1])
        sums, counts = _by_slot(over, reach)
        weight, total = ([_FADING * each for each in of] for of in (self.weight, self.total))
        for k in range(reach):  # a step counts once, however many requests it had
            weight[k] += 1
            total[k] += sums[k] / counts[k]
        last = reach - 1
        before = self.total[last] / self.weight[last] if self.weight[last] else 0.0
        if before > _NOTHING:  # behind it a draft stands as often as it did once those before it stand
            moved = total[last] / weight[last] / before
            total[reach:] = [moved * t for t in total[reach:]]
        return Past(tuple(recent), tuple(weight), tuple(total))

    def faded(self, steps: int = 1) -> Past:
        """With so many steps in which nobody drafted."""
        left = _FADING**steps
        weight, total = (tuple(left * each for each in of) for of in (self.weight, self.total))
        return Past(self.recent, weight, total)

    def forgotten(self) -> Past:
        """Where nobody drafted for so long that what requests have shown is no longer theirs; the mean of all stays."""
        return replace(self, recent=((),) * len(self.recent))

    def without(self, slots: Counts) -> Past:
        """Where requests have ended and others will take their slots."""
        recent = [*self.recent]
        for slot in slots.tolist():
            recent[slot] = ()
        return replace(self, recent=tuple(recent))

    def mean(self) -> Numbers:
        """Survival ``[K]`` to expect of a request that nothing is known of; 1 where nobody ever drafted."""
        each = (total / weight if weight > 0 else 1.0 for weight, total in zip(self.weight, self.total, strict=True))
        return np.array([*accumulate(each, min)])

    def averaged(self, slots: Counts, length: int | None = None) -> Numbers:
        """The ranked survival ``[R*K]`` to expect of a step: the mean of what the remembered rounds would have had.
        ``length``: K, that of the longest blocks if None.

        Ranking comes before averaging, since a budget goes to whoever is lucky in its own step. A request with fewer
        rounds counts as the mean of all in those it lacks.
        """
        known, length = slots.tolist(), length or self.block
        if not any(self.recent[slot] for slot in known):  # all are the mean, which never rises
            return np.repeat(self.mean()[:length], len(known))
        if len(known) * length <= FEW:
            ranked = [sorted((a for row in rows for a in row[:length]), reverse=True) for rows in self._filled(known)]
            return np.array([sum(each) / _REMEMBERED for each in zip(*ranked, strict=True)])
        rounds_MN = self._many(known)[..., :length].reshape(_REMEMBERED, -1)
        expected: Numbers = np.add.reduce(np.sort(rounds_MN, axis=1)[:, ::-1]) / _REMEMBERED
        return expected

    def as_last_seen(self, slots: Counts, length: int | None = None) -> Numbers:
        """The ranked survival ``[R*K]`` just as each request's last round had it; the mean of all where one is new."""
        last = self._filled(slots.tolist())[0]
        return np.array(sorted((a for row in last for a in row[:length]), reverse=True))

    def _filled(self, slots: list[int]) -> list[list[list[float]]]:
        """The last rounds of each request ``[M][R][K]``. What is not known is the mean of all, behind a round's own
        last draft from there on; never rising along a block.
        """
        if (found := self._found.get(asked := tuple(slots))) is None:  # once for all lengths of blocks
            mean, known, nobody = self.mean().tolist(), [self.recent[slot] for slot in slots], ()
            found = self._found[asked] = [
                [_as_long(each[i] if i < len(each) else nobody, mean) for each in known] for i in range(_REMEMBERED)
            ]
        return found

    def _many(self, slots: list[int]) -> Numbers:
        """The same at once, as an array ``[M, R, K]``."""
        if (found := self._arrays.get(asked := tuple(slots))) is None:
            known = [self.recent[slot] for slot in slots]
            rounds = [each[i] if i < len(each) else () for i in range(_REMEMBERED) for each in known]
            seen_NK, lengths = side_by_side(rounds, self.block)
            mean, ends, empty_N = self.mean(), lengths - 1, lengths == 0
            last_N = np.where(empty_N, 1.0, seen_NK[np.arange(len(rounds)), ends])
            ratio_N = np.where(empty_N, 1.0, last_N / np.maximum(mean[ends], 1e-300))
            goes_on_NK = np.minimum(ratio_N[:, None] * mean, last_N[:, None])
            filled = np.where(np.arange(self.block) < lengths[:, None], seen_NK, goes_on_NK)
            found = self._arrays[asked] = filled.reshape(_REMEMBERED, len(slots), -1)
        return found

    @cached_property
    def _found(self) -> dict[tuple[int, ...], list[list[list[float]]]]:
        return {}

    @cached_property
    def _arrays(self) -> dict[tuple[int, ...], Numbers]:
        return {}


def _by_slot(over: Present, reach: int) -> tuple[list[float], list[int]]:
    """Survival of all drafts summed by slot, and how many there are of each ``[reach]``."""
    if over.drafts > FEW:
        seen, lengths = side_by_side([row[:reach] for row in over.rows], reach)
        return np.add.reduce(seen).tolist(), np.add.reduce(np.arange(reach) < lengths[:, None]).tolist()
    sums, counts = [0.0] * reach, [0] * reach
    for survival in over.rows:
        for k, a in enumerate(survival[:reach]):
            sums[k] += a
            counts[k] += 1
    return sums, counts


def _as_long(survival: Survival, mean: Sequence[float]) -> list[float]:
    """As far as ``mean [K]``, which it goes on as from where it ends."""
    if len(survival) == len(mean):
        return [*survival]
    last = len(survival) - 1
    ratio = 1.0 if last < 0 else survival[last] / max(mean[last], 1e-300)
    return [*accumulate((*survival, *(ratio * each for each in mean[last + 1 :])), min)]
