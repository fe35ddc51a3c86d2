"""Exact laws by enumeration: every branch of the product's own rounds, on a target that is an explicit table.

Nothing here knows the rule of acceptance. The draws branch, the product's loop runs once per branch, and the
outputs, completed by the target's own conditional law, are compared with the target's law.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from dspark.speculation.acceptance import Round
from dspark.speculation.confidence import ConfidenceMap
from dspark.speculation.draws import Draws, Purpose
from dspark.speculation.loop import (
    Draft,
    DrafterState,
    Sample,
    Step,
    VerifyLength,
    WhenToDraft,
    always,
    generate,
    verify_all,
)
from dspark.speculation.sampling import Sampling, distribution

T = TypeVar("T")
Law = dict[tuple[int, ...], float]
Logits = Callable[[tuple[int, ...]], Tensor]  # the ids so far -> logits[V] of the next one

PROMPT = (0,)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6}


class EnumerationDraws:
    """Follows a script of outcomes, then the first possible outcome, and remembers the roads not taken."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self.script = script
        self.taken: list[int] = []
        self.alternatives: list[tuple[int, ...]] = []
        self.probability = 1.0
        self.keys: set[tuple[int, int, Purpose]] = set()

    def bernoulli(self, p: Tensor | float, *, round: int, slot: int, purpose: Purpose) -> bool:
        chance = float(p)
        assert 0 <= chance <= 1
        return self._branch([1 - chance, chance], (round, slot, purpose)) == 1

    def categorical(self, p_V: Tensor, *, round: int, slot: int, purpose: Purpose) -> int:
        assert abs(float(p_V.double().sum()) - 1) < TOLERANCE[p_V.dtype], "not a distribution"
        return self._branch(p_V.double().tolist(), (round, slot, purpose))

    def _branch(self, chances: list[float], key: tuple[int, int, Purpose]) -> int:
        assert key not in self.keys, f"{key} was drawn twice"
        self.keys.add(key)
        step = len(self.taken)
        possible = [i for i, chance in enumerate(chances) if chance > 0]
        outcome = possible[0]
        if step < len(self.script):
            outcome = self.script[step]
        else:
            self.alternatives += [(*self.taken, other) for other in possible[1:]]
        self.taken.append(outcome)
        self.probability *= chances[outcome]
        return outcome


def branches(run: Callable[[Draws], T]) -> Iterator[tuple[float, T]]:
    """(probability, result) of every branch of `run`, which must depend on its draws alone."""
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        draws = EnumerationDraws(scripts.pop())
        result = run(draws)
        scripts += draws.alternatives
        yield draws.probability, result


def random_logits(vocabulary: int, salt: str, *, dtype: torch.dtype = torch.float64, spread: float = 1.5) -> Logits:
    """A fixed random table: independent normal logits for every prefix."""
    table: dict[tuple[int, ...], Tensor] = {}

    def logits(prefix: tuple[int, ...]) -> Tensor:
        if prefix not in table:
            key = hashlib.blake2b(f"{salt}{prefix}".encode(), digest_size=7).digest()
            noise = torch.Generator().manual_seed(int.from_bytes(key, "little"))
            table[prefix] = (torch.randn(vocabulary, generator=noise, dtype=torch.float64) * spread).to(dtype)
        return table[prefix]

    return logits


def constant_logits(*p: float) -> Logits:
    """The same law at every prefix."""
    row = torch.tensor(p, dtype=torch.float64).log()
    return lambda prefix: row


def after(first: int, logits: Logits) -> Logits:
    """`logits`, but the token after the prompt is always `first`: prefill has one branch."""

    def forced(prefix: tuple[int, ...]) -> Tensor:
        row = logits(prefix)
        if len(prefix) > len(PROMPT):
            return row
        return torch.full_like(row, -math.inf).index_fill(0, torch.tensor(first), 0.0)

    return forced


def mixed(a: Logits, b: Logits, weight: float = 0.5) -> Logits:
    """A drafter that resembles a and errs like b."""
    return lambda prefix: weight * a(prefix) + (1 - weight) * b(prefix)


class TableTarget:
    """One request on a table: what it answers depends on the ids in its cache, so a wrong rollback shows."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def extend(self, ids: list[int], logits: int) -> Step:
        assert 1 <= logits <= len(ids)
        self.ids += ids
        ends = range(self.length - logits + 1, self.length + 1)
        rows = torch.stack([self.logits(tuple(self.ids[:end])) for end in ends])
        return Step(rows, torch.tensor(ids, dtype=torch.float64)[:, None])

    def truncate(self, length: int) -> None:
        assert 0 < length <= self.length
        del self.ids[length:]


@dataclass
class TableDrafter:
    """Draws K tokens in sequence from a table over `support`; c_k is a function of x_0..x_{k-1}."""

    logits: Logits
    block: int
    support: list[int] | None = None
    confidence: Callable[[tuple[int, ...], int], float] | None = None  # (ids before x_k, k from 0) -> logit of c_k
    seen: list[float] = field(default_factory=list)

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        assert features is not None
        self.seen += features[:, 0].tolist()
        assert self.seen == ids[:-1], "features must be those of the committed tokens, without the anchor"
        prefix, rows, confidence, peaks = tuple(ids), [], [], []
        for slot in range(slots or self.block):
            if self.confidence is not None:
                confidence.append(self.confidence(prefix, slot))
            support = None if self.support is None else torch.tensor(self.support)
            row = self.logits(prefix) if support is None else self.logits(prefix)[support]
            peaks.append(float(torch.logit(row.double().softmax(dim=0).max(), eps=1e-6)))
            index, p = sample(slot, row, support)
            rows.append(p)
            prefix += (index if self.support is None else self.support[index],)
        return Draft(
            list(prefix[len(ids) :]),
            torch.stack(rows),
            None if self.support is None else torch.tensor(self.support),
            confidence or None,
            peaks,
        )


def target_law(
    logits: Logits, sampling: Sampling, prefix: tuple[int, ...], tokens: int, stop_ids: tuple[int, ...] = ()
) -> Law:
    """The target's own law of the next `tokens` tokens, outputs ending behind a stop id."""
    if tokens == 0:
        return {(): 1.0}
    law: Law = {}
    for token, p in enumerate(distribution(logits(prefix), sampling).tolist()):
        if p > 0:
            left = 0 if token in stop_ids else tokens - 1
            for rest, q in target_law(logits, sampling, (*prefix, token), left, stop_ids).items():
                law[(token, *rest)] = p * q
    return law


@dataclass
class Measured:
    """The law of the outputs, and the expected number of drafts on the way."""

    law: Law
    expected: Law
    drafted: float = 0.0
    verified: float = 0.0
    accepted: float = 0.0
    by_source: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def error(self) -> float:
        """Largest difference of a probability."""
        keys = self.law.keys() | self.expected.keys()
        return max(abs(self.law.get(k, 0.0) - self.expected.get(k, 0.0)) for k in keys)

    def marginal(self, index: int, token: int) -> float:
        return sum(p for output, p in self.law.items() if output[index] == token)


def measure(
    logits: Logits,
    drafter: Callable[[], DrafterState],
    sampling: Sampling,
    *,
    tokens: int,
    rounds: int | None = None,
    verify_length: Callable[[], VerifyLength] = lambda: verify_all,
    when: WhenToDraft = always,
    lookup: Callable[[], DrafterState | None] = lambda: None,
    stop_ids: tuple[int, ...] = (),
    target: Callable[[Logits], TableTarget] = TableTarget,
    calibration: ConfidenceMap | None = None,
) -> Measured:
    """Law of the first `tokens` output tokens; each branch starts afresh.

    `rounds` stops the loop after that many speculative rounds, and the target's conditional law completes
    what is missing; None runs to the end.
    """

    def run(draws: Draws) -> list[Round]:
        started = generate(
            target(logits),
            drafter(),
            list(PROMPT),
            sampling=sampling,
            draws=draws,
            max_tokens=tokens if rounds is None else 10**6,
            lookup=lookup(),
            stop_ids=stop_ids,
            verify_length=verify_length(),
            when=when,
            calibration=calibration,
        )
        return list(islice(started, None if rounds is None else rounds + 1))

    measured = Measured(defaultdict(float), target_law(logits, sampling, PROMPT, tokens, stop_ids))
    for p, done in branches(run):
        output = tuple(token for r in done for token in r.tokens)
        left = 0 if done[-1].finish == "stop" else max(0, tokens - len(output))
        for rest, q in target_law(logits, sampling, PROMPT + output, left, stop_ids).items():
            measured.law[(output + rest)[:tokens]] += p * q
        measured.drafted += p * sum(r.drafted for r in done)
        measured.verified += p * sum(r.verified for r in done)
        measured.accepted += p * sum(r.accepted for r in done)
        for r in done:
            measured.by_source[r.source] += p * r.drafted
    return measured


def assert_law(measured: Measured, tolerance: float = 1e-9) -> None:
    """The law is the target's, and drafts were made and accepted on the way."""
    assert measured.drafted > 0
    assert measured.accepted > 0
    assert measured.error <= tolerance, f"law differs by {measured.error}"
