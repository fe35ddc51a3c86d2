"""What a round costs on this machine, measured before the first request.

The core itself is timed, on a context of random ids, without a draft and verifying 0, 1, ... K drafts in turn. The
clock is read here and never during a request, so that the length of a round depends on the seed and on this measurement
alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from dspark.decoding.pace import SETTLED
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.drafter import Drafter
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.planner.single import Planning, best_slots
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

CONTEXT = 128
# Rounds of each kind: the first warm up, the others are counted. Plain steps come in a row, the first of which are not
# counted: behind drafts they find other weights in the caches than their own.
WARM_UP = 1
_IN_A_ROW = SETTLED[False] + 2
REPEATS = 7
_PLAIN = -1  # the kind of a step without a draft, before lengths 0, 1, ...
UNKNOWN = 1.0  # in place of seconds that could not be measured


@dataclass(frozen=True)
class Prices:
    """Seconds of a greedy request's steps here: ``plain`` without a draft, ``rounds[l]`` of a round that verifies l
    drafts, drafting included.
    """

    plain: float
    rounds: tuple[float, ...]

    @property
    def known(self) -> bool:
        """Whether they could be measured; if not, all are ``UNKNOWN``, as if drafts cost nothing."""
        return self.plain != UNKNOWN


def measure(target: Target, drafter: Drafter, slots: int | None = None) -> Prices:
    """Plain steps and rounds that draft K = ``slots`` tokens and verify 0..K: so many of each, in turn, so that what
    else this machine does meanwhile is in all of them.
    """
    block = slots or drafter.config.block_size
    turns = _Turns(block)
    decoder = Decoder(target, drafter, greedy=Planning(turns.length, turns.drafts, slots), lookup=False)
    rounds = (block + 1 + _IN_A_ROW) * (WARM_UP + REPEATS)
    request = _request(target, 1 + rounds * (block + 1))
    return time_rounds(itertools.islice(decoder.stream(request, "dspark"), rounds + 1), block, time.perf_counter)


def measure_blocks(
    target: Target, drafter: Drafter, whole: Prices, survival: Sequence[float]
) -> tuple[int | None, Prices]:
    """How many tokens a greedy request should draft at once (None: whole blocks), and the prices of rounds that do.

    ``whole``: as ``measure`` gave them for whole blocks; ``survival``: the share of blocks whose first 1..K drafts are
    accepted, empty where nobody knows. Lengths beyond the shorter block are those of copies, which cost as much more as
    they did. All is in the time of ``whole``'s plain steps, should the machine have become slower since.
    """
    if not survival or not whole.known:
        return None, whole
    single = measure(target, drafter, 1)
    if not single.known:
        return None, whole
    slots = best_slots(survival, whole.rounds, single.rounds[0] * whole.plain / single.plain)
    if slots >= len(whole.rounds) - 1:
        return None, whole
    own = single if slots == 1 else measure(target, drafter, slots)
    if not own.known:
        return None, whole
    rounds = [each * whole.plain / own.plain for each in own.rounds]
    copies = [rounds[-1] + each - whole.rounds[slots] for each in whole.rounds[slots + 1 :]]
    return slots, Prices(whole.plain, (*rounds, *copies))


class _Turns:
    """Plain steps, then rounds that verify 0, 1, ... ``block`` drafts, and from the start again."""

    def __init__(self, block: int) -> None:
        self._kinds = itertools.cycle([*[_PLAIN] * _IN_A_ROW, *range(block + 1)])
        self._kind = _PLAIN

    def drafts(self, rounds: Sequence[Round], source: Source) -> bool:
        """Asked once a round: whether the next one drafts."""
        self._kind = next(self._kinds)
        return self._kind != _PLAIN

    def length(self, drafted: int, survival: Sequence[float] | None) -> int:
        """How many of them it verifies."""
        return self._kind


def time_rounds(rounds: Iterable[Round], block: int, clock: Callable[[], float]) -> Prices:
    """Medians of the steps without a draft, behind others of these, and of the rounds that verified 0..``block``, of
    which none is below a shorter one's (pooled where they were). ``UNKNOWN`` where one was not seen often enough.
    """
    taken: dict[int, list[float]] = {kind: [] for kind in range(_PLAIN, block + 1)}
    started, plain_before = clock(), 0
    for each in rounds:
        now = clock()
        if each.index and each.finish is None:  # the first reads the prompt, the last has no room for a draft
            if each.drafted:
                taken[each.verified].append(now - started)
            elif plain_before >= SETTLED[False]:
                taken[_PLAIN].append(now - started)
        plain_before, started = 0 if each.drafted else plain_before + 1, clock()
    if min(map(len, taken.values())) <= WARM_UP:
        return Prices(UNKNOWN, (UNKNOWN,) * (block + 1))
    plain, *medians = (statistics.median(some[WARM_UP:]) for some in taken.values())
    return Prices(plain, rising(medians))


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest sequence that never falls, by squares (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return tuple(statistics.fmean(pool) for pool in pools for _ in pool)


def _request(target: Target, tokens: int) -> Request:
    """Random ids to go on from, whatever the answer says."""
    context = min(CONTEXT, target.max_positions // 2)
    ids = torch.randint(0, target.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    return Request("measured", ids, Sampling(), 0, min(tokens, target.max_positions - context), ignore_stop=True)
