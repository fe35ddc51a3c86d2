"""Plain against speculative decoding on a few prompts, within a budget of wall-clock time.

Every prompt is first decoded at full length, to be shown. Then come repeats of all prompts, each prompt decoded in
both ways one right after the other, the order alternating, so that a machine that warms up, throttles or gets busy is
unfair to neither. Repeats are as long as the time allows (one length for all of them), and no further one is begun
when the time is up.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dspark.evaluation.evaluate import Task
from dspark.evaluation.identity import Comparison
from dspark.speculation.acceptance import Round

Way = Literal["plain", "dspark"]
WAYS: tuple[Way, Way] = ("plain", "dspark")

FEWEST_REPEATS = 5  # whatever the time: quartiles of less say nothing
FEWEST_TOKENS = 16  # shorter answers are mostly prefill
WARM_UP_TOKENS = 12
SHOWN_SHARE = 0.35  # of the time, at most, is spent on the texts that are shown
RESERVE = 0.95  # of what is left is planned for, so that a little noise does not cost the last repeat
ENOUGH = 0.75  # of the time that a repeat should take must be left to begin one


@dataclass(frozen=True)
class Timed:
    """One decoding: its rounds, the seconds each took, and the seconds of everything, detokenising included."""

    rounds: tuple[Round, ...]
    round_seconds: tuple[float, ...]
    seconds: float

    @property
    def ids(self) -> list[int]:
        """The output."""
        return [token for each in self.rounds for token in each.tokens]

    def later_seconds(self) -> list[float]:
        """Seconds of the rounds that prefill and the end of the output leave untouched: whole rounds only.

        The last one is cut where the output ends, and may not have drafted at all.
        """
        return [s for r, s in zip(self.rounds, self.round_seconds, strict=True) if r.index and r.finish is None]


@dataclass(frozen=True)
class Lap:
    """One prompt decoded both ways and compared."""

    task: Task
    runs: dict[Way, Timed]
    comparison: Comparison


# (task, way, most output tokens) -> the rounds as they come; does all that a user waits for, down to the text.
Decode = Callable[[Task, Way, int], Iterable[Round]]
# (task, plain ids, speculative ids) -> whether they agree; outside the timed part.
Judge = Callable[[Task, list[int], list[int]], Comparison]


def timed(rounds: Iterable[Round], clock: Callable[[], float]) -> Timed:
    """Run a decoding to its end, taking the time after every round."""
    done: list[Round] = []
    each: list[float] = []
    started = last = clock()
    for one in rounds:
        now = clock()
        done.append(one)
        each.append(now - last)
        last = now
    return Timed(tuple(done), tuple(each), clock() - started)


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of one prompt decoded in both ways: for reading it, and for each output token."""

    reading: float
    a_token: float

    @classmethod
    def of(cls, laps: Sequence[Lap]) -> Cost:
        """As these decodings went; the typical round decides, not the first, slow one."""
        reading = a_token = 0.0
        for way in WAYS:
            runs = [lap.runs[way] for lap in laps]
            rounds = [s for one in runs for s in one.later_seconds() or one.round_seconds]
            reading += statistics.median(one.round_seconds[0] for one in runs)
            tokens = sum(len(one.ids) for one in runs)
            a_token += statistics.median(rounds) * sum(len(one.rounds) for one in runs) / tokens
        return cls(reading, a_token)

    def of_length(self, tokens: int) -> float:
        """Seconds for that many output tokens."""
        return self.reading + tokens * self.a_token

    def fitting(self, wanted: int, seconds: float, decodings: int) -> int:
        """Output tokens with which so many take ``seconds``: at most ``wanted``, not below 24 (or wanted)."""
        fits = (seconds / decodings - self.reading) / self.a_token if self.a_token > 0 else wanted
        return min(wanted, max(FEWEST_TOKENS, int(fits)))


@dataclass
class Race:
    """Decodes and keeps what came of it; ``seconds`` is the budget, counted from the warm-up on."""

    tasks: Sequence[Task]
    decode: Decode
    judge: Judge
    clock: Callable[[], float]
    seconds: float
    max_tokens: int
    shown_tokens: int = 0
    repeat_tokens: int = 0
    shown: list[Lap] = field(default_factory=list)
    repeats: list[list[Lap]] = field(default_factory=list)
    _started: float = 0.0
    _cost: Cost = Cost(0.0, 0.0)
    _judged: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Comparison] = field(default_factory=dict)

    def warm_up(self) -> None:
        """Decode a little each way, twice: the first time for nothing, the second to learn the cost of a token."""
        self._started = self.clock()
        for _ in range(2):
            self._cost = Cost.of([self._lap(self.tasks[0], WAYS, min(WARM_UP_TOKENS, self.max_tokens))])

    def show(self, task: Task) -> Lap:
        """Decode one prompt, plain first, at full length or as much of it as the texts' share of the time allows."""
        share = SHOWN_SHARE * self.seconds - (self.seconds - self._left())
        tokens = self._cost.fitting(self.max_tokens, share, len(self.tasks) - len(self.shown))
        lap = self._lap(task, WAYS, tokens)
        self.shown.append(lap)
        self.shown_tokens = max(self.shown_tokens, tokens)
        self._cost = Cost.of([lap])
        return lap

    def set_length(self, repeats: int) -> None:
        """Choose the length of the repeats from how fast the prompts were and the time that is left."""
        self._cost = Cost.of(self.shown)
        decodings = repeats * len(self.tasks)
        self.repeat_tokens = self._cost.fitting(self.max_tokens, RESERVE * self._left(), decodings)

    def wants_another(self, repeats: int) -> bool:
        """Whether another repeat is due: fewer than asked for, and time for it (or fewer than three)."""
        done = len(self.repeats)
        if done < min(repeats, FEWEST_REPEATS):
            return True
        needed = self._cost.of_length(self.repeat_tokens) * len(self.tasks)
        return done < repeats and self._left() >= ENOUGH * needed

    def repeat(self) -> list[Lap]:
        """Decode every prompt once more; who goes first changes from prompt to prompt and from repeat to repeat."""
        laps = []
        for index, task in enumerate(self.tasks):
            turned = (index + len(self.repeats)) % 2
            laps.append(self._lap(task, WAYS[::-1] if turned else WAYS, self.repeat_tokens))
        self.repeats.append(laps)
        return laps

    def _left(self) -> float:
        return self.seconds - (self.clock() - self._started)

    def _lap(self, task: Task, order: Sequence[Way], max_tokens: int) -> Lap:
        runs = {way: timed(self.decode(task, way, max_tokens), self.clock) for way in order}
        return Lap(task, runs, self._compare(task, runs["plain"].ids, runs["dspark"].ids))

    def _compare(self, task: Task, plain_ids: list[int], spec_ids: list[int]) -> Comparison:
        """A difference that was judged before is not decoded again: its first position decides."""
        same = next(
            (i for i, (a, b) in enumerate(zip(plain_ids, spec_ids, strict=False)) if a != b),
            min(len(plain_ids), len(spec_ids)),
        )
        key = (task.id, tuple(plain_ids[: same + 1]), tuple(spec_ids[: same + 1]))
        if key not in self._judged:
            self._judged[key] = self.judge(task, plain_ids, spec_ids)
        return self._judged[key]
