"""What a round costs on this machine, measured before the first request.

The product's own loop is timed, on a context of random ids, verifying nothing and everything in turn: what lies between
is nearly a straight line for the few tokens of one request. The clock is read here and never during a request, so that
the length of a round depends on the seed and on this measurement alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.state import DSparkState
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import DrafterState, TargetState, generate
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.targets.session import TargetSession

CONTEXT = 128
# Rounds of each kind: the first few warm up, the others are counted.
WARM_UP = 2
REPEATS = 5


def measure_rounds(target: Target, drafter: DSparkDrafter) -> tuple[float, ...]:
    """Seconds of a greedy round that verifies 0..K drafts; takes fourteen rounds."""
    block = drafter.config.block_size
    context = min(CONTEXT, target.max_positions // 2)
    ids = torch.randint(0, target.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    room = min(target.max_positions, context + 2 * (WARM_UP + REPEATS + 1) * (block + 1))
    session = TargetSession(target, room, drafter.config.target_layer_ids)
    return time_rounds(session, DSparkState(drafter), ids, block, room, time.perf_counter)


def measure_plain(target: Target, drafter: DSparkDrafter, rounds: Sequence[float]) -> float:
    """Seconds of a greedy step without a draft, in the same context; taps are read as they are between drafts.

    ``rounds``: as ``measure_rounds`` gave them; where those could not be measured, a step is as dear as a round.
    """
    if len(set(rounds)) == 1:
        return rounds[0]
    context = min(CONTEXT, target.max_positions // 2)
    ids = torch.randint(0, target.vocab_size, (context,), generator=torch.Generator().manual_seed(0)).tolist()
    count = WARM_UP + REPEATS
    session = TargetSession(target, context + count + 1, drafter.config.target_layer_ids)
    steps = generate(session, None, ids, sampling=Sampling(), draws=SeededDraws(0), max_tokens=count + 1)
    next(steps)
    taken = []
    started = time.perf_counter()
    for _ in steps:
        now = time.perf_counter()
        taken.append(now - started)
        started = now
    return statistics.median(taken[WARM_UP:])


def time_rounds(
    target: TargetState,
    drafter: DrafterState,
    ids: list[int],
    block: int,
    room: int,
    clock: Callable[[], float],
) -> tuple[float, ...]:
    """Medians at 0 and at ``block`` verified drafts, and the line between them; never falling."""
    lengths = itertools.cycle((0, block))
    rounds = generate(
        target,
        drafter,
        ids,
        sampling=Sampling(),
        draws=SeededDraws(0),
        max_tokens=room - len(ids),
        verify_length=lambda drafted, survival: next(lengths),
    )
    next(rounds)
    taken: dict[int, list[float]] = {0: [], block: []}
    started = clock()
    for each in itertools.islice(rounds, 2 * (WARM_UP + REPEATS)):
        now = clock()
        if each.verified in taken:
            taken[each.verified].append(now - started)
        started = now
    if min(map(len, taken.values())) <= WARM_UP:
        return (1.0,) * (block + 1)  # no room to measure in: as if drafts cost nothing to verify
    none, whole = (statistics.median(taken[length][WARM_UP:]) for length in (0, block))
    slope = max(0.0, whole - none) / block
    return tuple(none + slope * length for length in range(block + 1))
