"""The cost model of this machine: steps of the core itself, timed for many sizes of load.

Contexts are pretended: blocks that nobody has written are published under random ids, so that requests find their
prompts read and a step over many long contexts needs none of the time that reading them would take. All settings are
timed in turn, again and again, so that what else this machine does meanwhile is in all of them; and a few steps in a
row, of which the first count only where there are no others (``pace.SETTLED``): behind another kind of step they find
the caches full of what that one worked with, which makes plain steps dearer than they are where nobody drafts.

Legend: R requests, K drafts of a block.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspark.decoding.admission import Share
from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.kvcache import BlockPool
from dspark.decoding.pace import SETTLED
from dspark.decoding.request import Completion, Request, Running
from dspark.drafters.drafter import Drafter
from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.loop import Draft
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

# A setting is timed once, and again until it has had so many seconds or turns; steps of a turn that count.
_SECONDS, _TURNS, _COUNT = 0.4, 11, 2
# Positions behind a request's context for its answer and drafts, before it begins anew.
_ROOM = 256
_MOST_KNOTS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Products are made of tiles of so many rows: the next row may begin another one.
_TILES = (8, 16, 32)
_APART = 1.5  # knots of drafts, one over the other


@dataclass(frozen=True)
class Setting:
    """A step to be timed: of so many requests, ``far`` of which have the long context; ``length``: how many drafts each
    verifies, None where nobody drafts; ``slots`` of their blocks (None: as in the drafter's training); ``sampled``:
    tokens are drawn, at temperature 1.
    """

    requests: int
    far: int
    length: int | None
    slots: int | None = None
    sampled: bool = False

    @property
    def sampling(self) -> Sampling:
        """Of its requests."""
        return Sampling(1.0) if self.sampled else Sampling()


@dataclass(frozen=True)
class Contexts:
    """Cached positions of a ``near`` request and of a ``far`` one, how many of the latter there are at most, and
    positions for answers behind them.
    """

    near: int
    far: int
    most_far: int
    room: int

    @classmethod
    def of(cls, longest: int, limit: int, requests: int, positions: int) -> Contexts | None:
        """Up to ``longest``, for as many of so many requests as a cache of ``positions`` has room for, in a context
        window of ``limit``; None where there is no room for them even with short ones.
        """
        room = min(_ROOM, limit // 2)
        near = max(1, min(BLOCK, longest, limit - room - 1))
        far = max(near, min(longest, limit - room - 1) // BLOCK * BLOCK)
        few = cls(near, far, 0, room)
        left = positions - requests * few.held(near)
        if left < 0:
            return None
        return cls(near, far, min(requests, left // few.held(far)) if far > near else 0, room)

    def held(self, context: int) -> int:
        """Positions of a request in the cache."""
        return -(-(context + 1 + self.room) // BLOCK) * BLOCK


def settings_of(block: int, most: int, contexts: Contexts) -> list[Setting]:
    """A grid over 1, 2, 4, ... ``most`` requests, lengths and contexts; of many requests fewer lengths. Short blocks
    are verified whole. Every other number of requests samples as well. Steps of a row more than a tile has show
    its stair.
    """
    counts = sorted({most, *(2**power for power in range(12) if 2**power <= most)})
    grid = []
    for index, count in enumerate(counts):
        lengths = range(block + 1) if count <= 2 else ((0, 2, 5), (0, 1, 3, block))[index % 2]
        grid += [Setting(count, 0, length) for length in (None, *sorted({min(each, block) for each in lengths}))]
        grid += [Setting(count, 0, short, short) for short in (1, 3) if short < block]
        far = min(count, contexts.most_far)
        grid += [Setting(count, far, length) for length in (None, 0, min(3, block)) if far]
        if index % 2 == 0:
            grid += [Setting(count, 0, length, length, sampled=True) for length in (None, min(3, block))]
    return grid + [Setting(tile + 1, 0, None) for tile in _TILES if tile < most]


def check_settings(block: int, most: int, contexts: Contexts, count: int, seed: int = 0) -> list[Setting]:
    """Settings anywhere between those of a grid, to judge a fit by."""
    numbers = random.Random(seed)
    settings = []
    for _ in range(count):
        requests = round(most ** numbers.random())
        far = numbers.randint(0, min(requests, contexts.most_far))
        length = numbers.choice((None, *range(block + 1)))
        slots = None if length is None else numbers.randint(max(1, length), block)
        settings.append(Setting(requests, far, length, slots, sampled=numbers.random() < 0.3))
    return settings


def time_steps(
    target: Target,
    drafter: Drafter,
    settings: Sequence[Setting],
    contexts: Contexts,
) -> list[tuple[Load, float]]:
    """For every setting the load of its median step, and the seconds that took."""
    bench = _Bench(target, drafter, max(each.requests for each in settings), contexts)
    for length in (None, 0):
        bench.step(Setting(1, 0, length))  # warms up
    steps, spent = defaultdict[int, list[tuple[float, Load]]](list), defaultdict[int, float](float)
    for turn in range(_TURNS):
        order = list(range(len(settings)))
        random.Random(turn).shuffle(order)
        for number in order:
            if not turn or spent[number] * (turn + 1) / turn <= _SECONDS:
                row = bench.row(settings[number], _SECONDS / 2)
                spent[number] += sum(seconds for seconds, _ in row)
                steps[number] += row[SETTLED[settings[number].length is not None] :] or row[-1:]
    medians = (sorted(steps[n], key=lambda step: step[0])[(len(steps[n]) - 1) // 2] for n in range(len(settings)))
    return [(load, seconds) for seconds, load in medians]


def measured_costs(target: Target, drafter: Drafter, requests: int, context: int, memory: float) -> CostModel:
    """Of steps of up to ``requests`` with contexts of up to ``context``, in caches of ``memory`` bytes; the start-up
    measurement of adaptive decoding. UserError where so many requests have no room.
    """
    contexts = Contexts.of(context, target.max_positions, requests, int(memory / target.new_cache(1, 1).bytes))
    if contexts is None:
        raise UserError(f"{memory / 1e9:.1f} GB have no room for the caches of {requests} requests")
    grid = settings_of(drafter.config.block_size, requests, contexts)
    return fit_costs(time_steps(target, drafter, grid, contexts), target.sizes)


def fit_costs(measured: Sequence[tuple[Load, float]], sizes: Sequence[int] = ()) -> CostModel:
    """The model of what was measured, with a knot at every round size that was, and at sizes of drafts that are not
    too near to each other; ``sizes`` that steps are padded to (``Target.sizes``).
    """
    tokens = {next((size for size in sizes if size >= load.tokens), load.tokens) for load, _ in measured}
    drafts = [1]
    for count in sorted(load.drafting for load, _ in measured):
        if count >= _APART * drafts[-1]:
            drafts.append(count)
    knots = [knot for knot in _MOST_KNOTS if knot == 1 or knot in tokens]
    return CostModel.fit(measured, knots, drafts, sizes)


class _Bench:
    """The core with requests under way, near and far ones, of which each step takes some.

    They go on for ever: one that is answered is asked again.
    """

    def __init__(self, target: Target, drafter: Drafter, near: int, contexts: Contexts) -> None:
        self._near = contexts.near
        kinds = [contexts.near] * near + [contexts.far] * contexts.most_far
        block = drafter.config.block_size
        numbers, tokens = random.Random(0), contexts.room - block - 1
        if tokens < block + 2:
            raise UserError(
                f"steps of {block} drafts can't be timed: answers have room for {contexts.room} positions, a context"
                f" window of {target.max_positions} leaves no more; expected {2 * block + 3} or more"
            )
        prompts = [numbers.choices(range(target.vocab_size), k=kind + 1) for kind in kinds]
        self._planner = _AsAsked(block)
        self._engine = Engine(
            target,
            [Request(f"{i}", ids, Sampling(), i, tokens, ignore_stop=True) for i, ids in enumerate(prompts)],
            Limits(len(kinds), sum(map(contexts.held, kinds)), step_tokens=2**20),
            "dspark",
            drafter,
            lookup=False,
            planner=self._planner,
        )
        for ids in prompts:
            _pretend(self._engine.pool, ids)

    def row(self, setting: Setting, most: float) -> list[tuple[float, Load]]:
        """Steps of one kind in a row, fewer where these take more than ``most`` seconds."""
        found, count = [self.step(setting)], SETTLED[setting.length is not None] + _COUNT
        while len(found) < count and sum(seconds for seconds, _ in found) < most:
            found.append(self.step(setting))
        return found

    def step(self, setting: Setting) -> tuple[float, Load]:
        """Seconds of a step as it was asked for, and what it worked on.

        A request near its answer's end verifies fewer drafts than it is asked to: such a step is not counted.
        """
        self._planner.setting, tokens = setting, setting.requests * (1 + (setting.length or 0))
        for _ in range(2 * _ROOM):
            shares = self._shares(setting)
            for share in shares:
                share.row.request = replace(share.row.request, sampling=setting.sampling)
            started = time.perf_counter()
            done = self._engine.step(shares)
            seconds = time.perf_counter() - started
            self._again(done)
            if self._engine.load.tokens == tokens:
                return seconds, self._engine.load
        raise AssertionError(f"no step of {setting} came about")

    def _shares(self, setting: Setting) -> list[Share]:
        """Of as many near and far requests as asked for, in turn, so that contexts stay what they are."""
        kinds: tuple[list[Share], list[Share]] = ([], [])
        for share in sorted(self._ready(), key=lambda share: share.row.written):
            kinds[len(share.row.request.prompt_ids) > self._near + 1].append(share)
        near, far = kinds
        return far[: setting.far] + near[: setting.requests - setting.far]

    def _ready(self) -> list[Share]:
        """A round for everybody; those that begin read the last token of their prompts before."""
        shares = self._engine.admission.shares()
        while reading := [share for share in shares if share.count]:
            self._again(self._engine.step(reading))
            shares = self._engine.admission.shares()
        return shares

    def _again(self, done: Sequence[Completion]) -> None:
        for each in done:
            self._engine.admission.submit(each.request)


class _AsAsked:
    """Plans steps as a setting has them (``planners.StepPlanner``)."""

    def __init__(self, block: int) -> None:
        self.setting = Setting(1, 0, None)
        self.draft_slots: Sequence[int | None] = range(1, block + 1)

    def begin(self, rows: Sequence[Running]) -> None: ...

    def wanted(self, row: Running, source: Source) -> bool:
        return self.setting.length is not None

    def slots(self, row: Running) -> int | None:
        return self.setting.slots

    def lengths(self, rows: Sequence[Running], drafts: Sequence[Draft]) -> list[int]:
        return [self.setting.length or 0] * len(rows)

    def ahead(self) -> None: ...

    def over(self, rounds: Sequence[Round], load: Load, seconds: float) -> None: ...


def _pretend(pool: BlockPool, ids: Sequence[int]) -> None:
    """Let the blocks of ``ids`` be found as if they had been read."""
    table, whole = BlockTable(), len(ids) // pool.size * pool.size
    pool.reserve(table, whole)
    table.length = whole
    pool.publish(table, ids[:whole])
    pool.release(table)
