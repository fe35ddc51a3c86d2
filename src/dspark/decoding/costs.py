"""The cost model of this machine: steps of the core itself, timed for many sizes of load.

Contexts are pretended: blocks that nobody has written are published under random ids, so that requests find their
prompts read and a step over many long contexts needs none of the time that reading them would take.

Legend: R requests, K drafts of a block.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.kvcache import BlockPool
from dspark.decoding.request import Request
from dspark.drafters.dspark import DSparkDrafter
from dspark.nn.blocks import BlockTable
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.planner.single import Planning
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

# Steps of each kind: the first warm up, the others are counted.
_WARM_UP, _REPEATS = 1, 3
_PLAIN = -1  # the kind of a step without a draft, before lengths 0, 1, ...
_MOST_KNOTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Setting:
    """A load to be timed: so many requests with so long a context each, which verify ``lengths`` drafts in turn."""

    requests: int
    context: int
    lengths: tuple[int, ...]


def settings_of(block: int, most_requests: int, contexts: Sequence[int], fits: Callable[[int], bool]) -> list[Setting]:
    """A grid over 1, 2, 4, ... ``most_requests``, ``contexts`` and lengths; ``fits`` says whether a cache of so many
    positions may be had.
    """
    lengths = tuple(sorted({n for n in (0, 1, 2, 3, 5, 7, 11, 15) if n < block} | {block}))
    requests = [count for power in range(12) if (count := 2**power) <= most_requests]
    grid = [Setting(count, context, lengths) for count in requests for context in contexts]
    return [each for each in grid if fits(_positions(each))]


def check_settings(block: int, most_requests: int, longest: int, count: int, seed: int = 0) -> list[Setting]:
    """Loads between those of a grid, to judge a fit by."""
    numbers = random.Random(seed)
    return [
        Setting(
            numbers.randint(1, most_requests),
            numbers.randint(min(64, longest), longest),
            tuple(numbers.sample(range(block + 1), min(2, block + 1))),
        )
        for _ in range(count)
    ]


def time_steps(target: Target, drafter: DSparkDrafter, settings: Iterable[Setting]) -> list[tuple[Load, float]]:
    """Loads of the core's steps and the seconds they took: for every setting plain steps and rounds of all its lengths,
    in turn, so that what else this machine does meanwhile is in all of them.
    """
    return [step for setting in settings for step in _time(target, drafter, setting)]


def fit_costs(measured: Sequence[tuple[Load, float]]) -> CostModel:
    """The model of what was measured, with a knot at every size that it may bend at."""
    tokens = {load.tokens for load, _ in measured}
    requests = {load.drafting for load, _ in measured if load.drafting}
    return CostModel.fit(
        measured,
        tokens=[knot for knot in _MOST_KNOTS if knot == 1 or knot <= max(tokens)],
        requests=[1, *(count for count in sorted(requests) if count > 1)],
    )


class _Command:
    """What the next step does, whoever asks."""

    def __init__(self) -> None:
        self.kind = _PLAIN

    def drafts(self, rounds: Sequence[Round], source: Source) -> bool:
        """Whether it drafts."""
        return self.kind != _PLAIN

    def length(self, drafted: int, survival: Tensor | None) -> int:
        """How many drafts it verifies."""
        return self.kind


def _time(target: Target, drafter: DSparkDrafter, setting: Setting) -> list[tuple[Load, float]]:
    numbers, command = random.Random(setting.context), _Command()
    kinds = (_PLAIN, *setting.lengths)
    steps = 1 + len(kinds) * (_WARM_UP + _REPEATS)
    room = 1 + steps * (max(setting.lengths) + 1)
    requests = [
        Request(f"{i}", numbers.choices(range(target.vocab_size), k=setting.context), Sampling(), i, room, True)
        for i in range(setting.requests)
    ]
    engine = Engine(
        target,
        requests,
        Limits(setting.requests, _positions(setting), step_tokens=2**20),
        "dspark",
        drafter,
        lookup=False,
        greedy=Planning(command.length, command.drafts),
    )
    for request in requests:
        _pretend(engine.pool, request.prompt_ids)
    engine.step(engine.admission.shares())  # the last positions of the prompts, which are read
    measured: list[tuple[Load, float]] = []
    for repeat in range(_WARM_UP + _REPEATS):
        for command.kind in kinds:
            shares = engine.admission.shares()
            if len(shares) < setting.requests:  # lucky drafts have used up somebody's room
                return measured
            started = time.perf_counter()
            engine.step(shares)
            if repeat >= _WARM_UP:
                measured.append((engine.load, time.perf_counter() - started))
    return measured


def _positions(setting: Setting) -> int:
    """What the cache of a setting holds."""
    rounds = (len(setting.lengths) + 1) * (_WARM_UP + _REPEATS) + 2
    each = setting.context + rounds * (max(setting.lengths) + 1) + BLOCK
    return setting.requests * -(-each // BLOCK) * BLOCK


def _pretend(pool: BlockPool, ids: Sequence[int]) -> None:
    """Let the blocks of ``ids`` be found as if they had been read."""
    table, whole = BlockTable(), len(ids) // pool.size * pool.size
    pool.reserve(table, whole)
    table.length = whole
    pool.publish(table, ids[:whole])
    pool.release(table)
