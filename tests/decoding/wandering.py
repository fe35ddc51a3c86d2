"""The product's own planner on a made-up machine whose speed wanders, with drafts whose acceptance is known.

Legend: K drafts of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Request, Running
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.cost import CostModel, Load
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import Draft
from dspark.speculation.rows import Numbers
from dspark.speculation.sampling import Sampling

BLOCK, ANSWER, _CONTEXT, _COPIED = 5, 64, 100, 4


def costs(row: float = 0.01, draft: float = 0.3, drafted: float = 0.01, scale: float = 1.0) -> CostModel:
    """A plain step of one request takes ``scale`` hundredths of a second, each row more ``row`` of that, drafting
    ``draft`` and each token that is drafted ``drafted``.
    """
    weights = (1.0, 1023 * row, 0.0, 0.0, 0.0, 0.0, draft, 1023 * drafted, 0.0, 0.0)
    return CostModel((1, 1024), (1, 1024), tuple(0.01 * scale * each for each in weights))


@dataclass
class Machine:
    """What steps take: ``true`` costs at a speed that wanders between one and two, or at one where it is ``calm``; a
    step behind one of the other kind, with drafts or without, takes ``cold`` of it more, and so do plain ones until
    ``lasts`` have gone by.
    """

    true: CostModel
    seed: int = 0
    calm: bool = False
    cold: float = 0.0
    lasts: int = 1

    def __post_init__(self) -> None:
        self._numbers, self._slower = np.random.default_rng(self.seed), 0.0
        self._drafted, self._row = False, self.lasts

    def seconds(self, load: Load) -> float:
        """Of the next step: 3 % of noise where it is calm, else 12 %, and one step in 16 is held up."""
        numbers = self._numbers
        walked, noise, held_up = numbers.normal(0, 0.03), numbers.normal(0, 0.12), numbers.uniform(1.3, 3.0)
        rare = numbers.random() < 1 / 16
        drafts = load.drafting > 0
        self._row = self._row + 1 if drafts == self._drafted else 0
        cold = self.cold if self._row < (1 if drafts else self.lasts) else 0.0
        self._drafted, foretold = drafts, self.true.seconds(load) * (1 + cold)
        if self.calm:
            return foretold * float(np.exp(noise / 4))
        self._slower = abs(self._slower + walked)
        self._slower = min(self._slower, 2 * np.log(2) - self._slower)
        return foretold * float(np.exp(self._slower + noise)) * (held_up if rare else 1.0)


@dataclass
class Texts:
    """``easy``: how often a draft stands that follows one that stood, on average over rounds, which differ, and of
    which confidence says just that. ``copies``: rounds in which one is found, whose drafts stand as ``copied`` says.
    """

    easy: float
    copies: float = 0.0
    copied: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._numbers = np.random.default_rng(1000 + self.seed)

    def found(self) -> bool:
        """Whether a copy is, in a round."""
        return bool(self._numbers.random() < self.copies)

    def chances(self, source: Source, count: int) -> Numbers:
        """Of each of a round's drafts ``[K]``, those before it standing."""
        mean = self.easy if source == "drafter" else self.copied
        return np.full(count, min(0.99, max(0.01, self._numbers.beta(3 * mean, 3 * (1 - mean)))))

    def stand(self, chances: Numbers) -> int:
        """How many of a round's drafts."""
        return int(np.append(self._numbers.random(len(chances)) >= chances, True).argmax())


@dataclass
class Served:
    """Steps of so many ``requests``, each followed by another after ``ANSWER`` tokens, planned as ``settings`` say, or
    all drafting so many tokens each (0: off).
    """

    settings: Adaptive | int
    machine: Machine
    texts: Texts
    requests: int = 1
    tokens: int = 0
    seconds: float = 0.0
    rows: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planner = Together(self.settings, self.requests, BLOCK) if isinstance(self.settings, Adaptive) else None
        self.rows = [_begun(ANSWER * (i + 1) // self.requests) for i in range(self.requests)]

    def run(self, steps: int) -> float:
        """Tokens a second of so many."""
        for _ in range(steps):
            self._step()
        return self.tokens / self.seconds

    def _step(self) -> None:
        if self.planner:
            self.planner.begin(self.rows)
        drafts, chances = zip(*map(self._drafted, self.rows), strict=True)
        fixed = [draft.slots for draft in drafts]
        lengths = self.planner.lengths(self.rows, drafts) if self.planner else fixed
        rounds = [self._round(*each) for each in zip(self.rows, drafts, lengths, chances, strict=True)]
        drafted = sum(draft.slots for draft in drafts if draft.source == "drafter")
        count, context = self.requests + sum(lengths), self.requests * _CONTEXT
        load = Load(count, self.requests, context, context, drafted, drafted * _CONTEXT, count, drafted)
        took = self.machine.seconds(load)
        self.seconds += took
        if self.planner:
            self.planner.over(rounds, load, took)
        self.rows = [_begun(ANSWER) if each.finish else row for row, each in zip(self.rows, rounds, strict=True)]

    def _drafted(self, row: Running) -> tuple[Draft, Numbers]:
        if self.texts.found() and self.planner and self.planner.wanted(row, "lookup"):
            chances = self.texts.chances("lookup", _COPIED)
            return Draft([0] * _COPIED, confidence=_logits(chances), source="lookup"), chances
        if not (self.planner.wanted(row, "drafter") if self.planner else self.settings):
            return Draft([]), np.zeros(0)
        count = (self.planner.slots(row) or BLOCK) if self.planner else int(str(self.settings))
        chances = self.texts.chances("drafter", count)
        return Draft([0] * count, confidence=_logits(chances), peaks=[0.0] * count), chances

    def _round(self, row: Running, draft: Draft, length: int, chances: Numbers) -> Round:
        stood = min(length, self.texts.stand(chances))
        row.ids += [0] * (stood + 1)
        self.tokens += stood + 1
        done = "length" if row.written >= row.limit else None
        row.rounds.append(Round(len(row.rounds), (0,) * (stood + 1), draft.slots, length, stood, done, draft.source))
        return row.rounds[-1]


def gained(machine: Machine, texts: Texts, settings: Adaptive | int, requests: int = 1, steps: int = 600) -> float:
    """Tokens a second over those of plain decoding, on the same machine in the same hour."""
    plain = Served(0, replace(machine), replace(texts), requests).run(steps)
    return Served(settings, replace(machine), replace(texts), requests).run(steps) / plain


def _begun(limit: int) -> Running:
    row = Running(Request("", [1], Sampling(1.0), 0, limit), SeededDraws(0), limit)
    row.table.length = _CONTEXT
    return row


def _logits(chances: Numbers) -> list[float]:
    return [*np.log(chances / (1 - chances)).tolist()]
