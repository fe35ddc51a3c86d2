"""Every prompt decoded plainly, with the drafter and by prompt lookup, one after another on the same machine.

The three ways of one prompt follow each other, and their order rotates from prompt to prompt, so that a
machine that warms up, throttles or gets busy is unfair to none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dspark.evaluation.identity import Comparison
from dspark.speculation.acceptance import Round

Mode = Literal["plain", "dspark", "ngram"]
MODES: tuple[Mode, ...] = ("plain", "dspark", "ngram")


@dataclass(frozen=True)
class Task:
    """One prompt of one domain; ``seed`` fixes the draws of its answers."""

    domain: str
    id: str
    prompt_ids: list[int]
    seed: int


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
class Trial:
    """One prompt decoded in every mode; greedy and coupled texts are compared with plain's."""

    task: Task
    runs: dict[Mode, Run]
    comparisons: dict[Mode, Comparison]


Decode = Callable[[Task, Mode], Sequence[Round]]
Judge = Callable[[Task, list[int], list[int]], Comparison]


def measure(tasks: Sequence[Task], decode: Decode, clock: Callable[[], float], judge: Judge | None) -> Iterator[Trial]:
    """Decode every task in every mode, timed one by one with ``clock`` (seconds).

    ``decode`` does all the work that a user waits for, down to the text. The first task is decoded once in
    every mode before anything is timed. ``judge(task, plain ids, other ids)`` compares texts, outside the
    timed part; None where texts may differ (sampling, unless coupled).
    """
    for mode in MODES if tasks else ():
        decode(tasks[0], mode)
    for index, task in enumerate(tasks):
        runs: dict[Mode, Run] = {}
        for mode in rotated(index):
            started = clock()
            rounds = decode(task, mode)
            runs[mode] = Run(rounds, clock() - started)
        comparisons: dict[Mode, Comparison] = {}
        if judge is not None:
            comparisons = {mode: judge(task, runs["plain"].ids, runs[mode].ids) for mode in MODES if mode != "plain"}
        yield Trial(task, runs, comparisons)


def rotated(index: int) -> tuple[Mode, ...]:
    """Order of the modes for that prompt: over any three in a row each mode takes each place once."""
    shift = index % len(MODES)
    return MODES[shift:] + MODES[:shift]
