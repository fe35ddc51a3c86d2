"""Every prompt decoded plainly, with each drafter and by prompt lookup, one after another on the same machine.

The ways of one prompt follow each other, and their order rotates from prompt to prompt, so that a machine that warms
up, throttles or gets busy is unfair to none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dspark.evaluation.identity import Comparison
from dspark.speculation.acceptance import Round

PLAIN, NGRAM = "plain", "ngram"  # the ways that need no drafter; any other way is a drafter's name


def ways_of(drafters: Sequence[str]) -> tuple[str, ...]:
    """All ways to decode, plain first and prompt lookup last."""
    return (PLAIN, *drafters, NGRAM)


@dataclass(frozen=True)
class Task:
    """One turn of a prompt; ``seed`` fixes the draws of its answers.

    ``benchmark`` is empty for prompts of a file. ``turn`` counts from 0; a later turn's ``prompt_ids`` hold the
    target's own earlier answers.
    """

    domain: str
    id: str
    prompt_ids: list[int]
    seed: int
    benchmark: str = ""
    turn: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What no other task of an evaluation has."""
        return self.domain, self.benchmark, self.id, self.turn


@dataclass(frozen=True)
class Run:
    """One decoding of one prompt and how long it took, in seconds."""

    rounds: Sequence[Round]
    seconds: float

    @property
    def ids(self) -> list[int]:
        """The output."""
        return [token for each in self.rounds for token in each.tokens]


@dataclass(frozen=True)
class Heard:
    """Whole rounds of one decoding: confidence logits and peaks ``[N][K]``, the probability ``oracle [N][K]`` with
    which each draft was to be accepted (NaN where unknown), and how many were ``accepted [N]``.
    """

    logits: list[list[float]]
    peaks: list[list[float]]
    oracle: list[list[float]]
    accepted: list[int]


@dataclass(frozen=True)
class Trial:
    """One prompt decoded in every way; greedy and coupled texts are compared with plain's. ``heard`` by drafter."""

    task: Task
    runs: dict[str, Run]
    comparisons: dict[str, Comparison]
    heard: dict[str, Heard] = field(default_factory=dict)


Decode = Callable[[Task, str], Sequence[Round]]
Judge = Callable[[Task, list[int], list[int]], Comparison]


class Measuring:
    """Decodes tasks in every way, timed one by one with ``clock`` (seconds).

    ``decode`` does all the work that a user waits for, down to the text. ``judge(task, plain ids, other ids)`` compares
    texts, outside the timed part; None where texts may differ (sampling, unless coupled).
    """

    def __init__(
        self, ways: Sequence[str], decode: Decode, clock: Callable[[], float], judge: Judge | None = None
    ) -> None:
        self._ways, self._decode, self._clock, self._judge = tuple(ways), decode, clock, judge
        self._warm = False

    def trial(self, task: Task, index: int) -> Trial:
        """Decode one task; the first is decoded once in every way before anything is timed. ``index`` rotates them."""
        if not self._warm:
            for way in self._ways:
                self._decode(task, way)
            self._warm = True
        runs: dict[str, Run] = {}
        for way in rotated(self._ways, index):
            started = self._clock()
            rounds = self._decode(task, way)
            runs[way] = Run(rounds, self._clock() - started)
        comparisons: dict[str, Comparison] = {}
        if self._judge is not None:
            plain = runs[PLAIN].ids
            comparisons = {way: self._judge(task, plain, runs[way].ids) for way in self._ways if way != PLAIN}
        return Trial(task, runs, comparisons)


def rotated(ways: tuple[str, ...], index: int) -> tuple[str, ...]:
    """Order for that prompt: over as many in a row as there are ways, each takes each place once."""
    shift = index % len(ways)
    return ways[shift:] + ways[:shift]
