"""What a round costs on this machine, measured before the first request.

The core itself is timed, on a context of random ids, verifying 0, 1, ... K drafts in turn. The clock is read here and
never during a request, so that the length of a round depends on the seed and on this measurement alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.dspark import DSparkDrafter
from dspark.speculation.acceptance import Round
from dspark.speculation.planner import Planning, best_slots
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

CONTEXT = 128
# Rounds of each kind: the first warm up, the others are counted.
WARM_UP = 1
REPEATS = 5
UNKNOWN = 1.0  # in place of seconds that could not be measured


def measure_rounds(target: Target, drafter: DSparkDrafter, slots: int | None = None) -> tuple[float, ...]:
    """Seconds of a greedy round that drafts K = ``slots`` tokens and verifies 0..K: so many of each, in turn."""
    block = slots or drafter.config.block_size
    lengths = itertools.cycle(range(block + 1))
    planning = Planning(lambda drafted, survival: next(lengths), draft_slots=slots)
    decoder = Decoder(target, drafter, greedy=planning, lookup=False)
    rounds = (block + 1) * (WARM_UP + REPEATS)
    request = _request(target, 1 + rounds * (block + 1))
    return time_rounds(itertools.islice(decoder.stream(request, "dspark"), rounds + 1), block, time.perf_counter)


def measure_blocks(
    target: Target, drafter: DSparkDrafter, whole: Sequence[float], survival: Sequence[float]
) -> tuple[int | None, tuple[float, ...]]:
    """How many tokens a greedy request should draft at once (None: whole blocks), and seconds of rounds that do.

    ``whole``: as ``measure_rounds`` gave them for whole blocks; ``survival``: the share of blocks whose first 1..K
    drafts are accepted, empty where nobody knows. Lengths beyond the shorter block are those of copies, which cost as
    much more as they did.
    """
    if not survival or set(whole) == {UNKNOWN}:
        return None, tuple(whole)
    slots = best_slots(survival, whole, measure_rounds(target, drafter, 1)[0])
    if slots >= len(whole) - 1:
        return None, tuple(whole)
    own = measure_rounds(target, drafter, slots)
    if set(own) == {UNKNOWN}:
        return None, tuple(whole)
    return slots, (*own, *(own[-1] + each - whole[slots] for each in whole[slots + 1 :]))


def measure_plain(target: Target, drafter: DSparkDrafter, rounds: Sequence[float]) -> float:
    """Seconds of a greedy round without a draft, in the same context; features are kept for the next one as ever.

    ``rounds``: as ``measure_rounds`` gave them; where those could not be measured, a step is as dear as a round.
    """
    if set(rounds) == {UNKNOWN}:
        return UNKNOWN
    decoder = Decoder(target, drafter, greedy=Planning(when=lambda rounds, source: False), lookup=False)
    count = 2 * REPEATS
    taken = []
    started = time.perf_counter()
    for _ in decoder.stream(_request(target, count + 1), "dspark"):
        now = time.perf_counter()
        taken.append(now - started)
        started = now
    return statistics.median(taken[1 + WARM_UP :])


def time_rounds(rounds: Iterable[Round], block: int, clock: Callable[[], float]) -> tuple[float, ...]:
    """Medians of the rounds that verified 0..``block`` drafts, none below a shorter one's (pooled where they were).

    All ones where a length was not seen often enough: as if drafts cost nothing to verify.
    """
    taken: dict[int, list[float]] = {length: [] for length in range(block + 1)}
    started = clock()
    for each in rounds:
        now = clock()
        if each.drafted:  # the first reads the prompt, the last has no room for a draft
            taken[each.verified].append(now - started)
        started = clock()
    if min(map(len, taken.values())) <= WARM_UP:
        return (UNKNOWN,) * (block + 1)
    return rising([statistics.median(some[WARM_UP:]) for some in taken.values()])


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
