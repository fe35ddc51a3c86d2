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

FEWEST_REPEATS = 3  # whatever the time: quartiles of less say nothing
FEWEST_TOKENS = 24  # shorter answers are mostly prefill
WARM_UP_TOKENS = 12
SHOWN_SHARE = 0.5  # of the time, at most, is spent on the texts that are shown


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


def fitting_length(wanted: int, seconds: float, decodings: int, seconds_a_token: float) -> int:
    """Output tokens of which ``decodings`` fit into ``seconds``: at most ``wanted``, never below 24 (or wanted).

    ``seconds_a_token``: of one output token, decoded in both ways.
    """
    fits = int(seconds / (decodings * seconds_a_token)) if seconds_a_token > 0 else wanted
    return min(wanted, max(FEWEST_TOKENS, fits))


def seconds_a_token(laps: Sequence[Lap]) -> float:
    """Wall-clock of one output token in both ways together; the typical round decides, not the first, slow one."""
    total = 0.0
    for way in WAYS:
        timings = [lap.runs[way] for lap in laps]
        rounds = [s for one in timings for s in one.later_seconds() or one.round_seconds]
        tokens = sum(len(one.ids) for one in timings)
        total += statistics.median(rounds) * sum(len(one.rounds) for one in timings) / tokens
    return total


@dataclass
class Race:
    """Decodes and keeps what came of it; ``seconds`` is the budget, counted from the warm-up on."""

    tasks: Sequence[Task]
    decode: Decode
    judge: Judge
    clock: Callable[[], float]
    seconds: float
    shown_tokens: int = 0
    repeat_tokens: int = 0
    shown: list[Lap] = field(default_factory=list)
    repeats: list[list[Lap]] = field(default_factory=list)
    _started: float = 0.0
    _cost: float = 0.0
    _judged: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Comparison] = field(default_factory=dict)

    def warm_up(self, max_tokens: int) -> None:
        """One decoding each way that counts for nothing but the length of what follows."""
        self._started = self.clock()
        self._cost = seconds_a_token([self._lap(self.tasks[0], WAYS, min(WARM_UP_TOKENS, max_tokens))])
        share = SHOWN_SHARE * self.seconds
        self.shown_tokens = fitting_length(max_tokens, share, len(self.tasks), self._cost)

    def show(self, task: Task) -> Lap:
        """Decode one prompt at full length, plain first."""
        lap = self._lap(task, WAYS, self.shown_tokens)
        self.shown.append(lap)
        return lap

    def set_length(self, repeats: int) -> None:
        """Choose the length of the repeats from how fast the prompts were and the time that is left."""
        self._cost = seconds_a_token(self.shown)
        decodings = repeats * len(self.tasks)
        self.repeat_tokens = fitting_length(self.shown_tokens, self._left(), decodings, self._cost)

    def wants_another(self, repeats: int) -> bool:
        """Whether another repeat is due: fewer than asked for, and time for it (or fewer than three)."""
        done = len(self.repeats)
        if done < min(repeats, FEWEST_REPEATS):
            return True
        return done < repeats and self._left() >= self._cost * self.repeat_tokens * len(self.tasks)

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
