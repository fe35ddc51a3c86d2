"""The record of a demo: what the terminal and the page show, and what --json writes. Plain values only."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspark.report.spans import Span


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a figure over repeats."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles with interpolation between the values; a single value is its own quartiles."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass(frozen=True)
class Verdict:
    """Whether two texts of one prompt are identical; at the first difference, how near a tie it was (in logits)."""

    equal: bool
    unexplained: bool
    position: int | None = None
    gap: float | None = None
    allowed: float | None = None

    def sentence(self) -> str:
        """The verdict in words."""
        if self.equal:
            return "identical, token for token"
        where = f"differs from token {(self.position or 0) + 1} on"
        if self.gap is None or self.allowed is None:
            return f"{where}: one text ends early, which nothing explains"
        bound = f"{self.gap:.2g} below plain's top logit, rounding explains {self.allowed:.2g}"
        return f"{where}: {'NOT EXPLAINED' if self.unexplained else 'a numerical tie'} ({bound})"


@dataclass(frozen=True)
class RoundBar:
    """One speculative round: tokens drafted, accepted and gained in all; ``copied``: drafted by lookup."""

    drafted: int
    accepted: int
    tokens: int
    copied: bool = False


@dataclass(frozen=True)
class Showing:
    """One prompt decoded both ways at full length; rates are of these two decodings alone, prefill included."""

    id: str
    domain: str
    prompt: str
    plain_text: str
    plain_tokens: int
    plain_tok_s: float
    spec_spans: tuple[Span, ...]
    spec_tokens: int
    spec_tok_s: float
    rounds: tuple[RoundBar, ...]
    tau: float
    verdict: Verdict

    @property
    def drafted(self) -> int:
        """Tokens proposed, copies included."""
        return sum(bar.drafted for bar in self.rounds)

    def is_copy(self, span: Span) -> bool:
        """Whether the drafts of the span's round were looked up; round 0 reads the prompt and has no bar."""
        return span.round > 0 and self.rounds[span.round - 1].copied

    @property
    def accepted(self) -> int:
        """Drafted tokens that the target kept."""
        return sum(bar.accepted for bar in self.rounds)


@dataclass(frozen=True)
class PairFigures:
    """One domain, over the repeats: pooled tokens a second of each repeat, then the median over repeats.

    ``speedup`` is the ratio of the two medians, ``speedup_spread`` of the repeats' own ratios. ``equal`` counts
    prompts whose texts agreed in every decoding, ``unexplained`` those with a difference that no tie explains.
    ``shown_tau``, ``repeat_share`` and ``tau_without_repeats`` are of the texts shown, which are longer.
    """

    domain: str
    plain: Spread
    spec: Spread
    speedup_spread: Spread
    tau: float
    drafted: int
    accepted: int
    equal: int
    total: int
    unexplained: int
    shown_tau: float
    repeat_share: float
    tau_without_repeats: float

    @property
    def speedup(self) -> float:
        """How many times the tokens a second."""
        return self.spec.median / self.plain.median

    def as_json(self) -> dict[str, Any]:
        """The keys that scripts rely on, and more."""
        return {
            "domain": self.domain,
            "plain_tok_s": self.plain.median,
            "spec_tok_s": self.spec.median,
            "speedup": self.speedup,
            "tau": self.tau,
            "identical": {"equal": self.equal, "total": self.total, "unexplained": self.unexplained},
            "plain_quartiles": [self.plain.low, self.plain.high],
            "spec_quartiles": [self.spec.low, self.spec.high],
            "speedup_quartiles": [self.speedup_spread.low, self.speedup_spread.high],
            "drafted": self.drafted,
            "accepted": self.accepted,
            "shown_tau": self.shown_tau,
            "repeat_share": self.repeat_share,
            "tau_without_repeats": self.tau_without_repeats,
        }


@dataclass(frozen=True)
class DemoRecord:
    """Everything about one run of the demo."""

    showings: tuple[Showing, ...]
    pairs: tuple[PairFigures, ...]
    overall: PairFigures
    step_ms: float
    round_ms: float
    block: int
    shown_tokens: int
    repeat_tokens: int
    repeats: int
    repeats_asked: int
    target: str
    drafter: str
    dtype: str
    machine: dict[str, str]
    date: str
    command: str
    seconds: float

    @property
    def break_even(self) -> float:
        """Tokens that a round has to yield to pay for itself."""
        return self.round_ms / self.step_ms

    def as_json(self) -> dict[str, Any]:
        """What --json writes."""
        rest = {
            name: getattr(self, name)
            for name in (
                "step_ms",
                "round_ms",
                "break_even",
                "block",
                "shown_tokens",
                "repeat_tokens",
                "repeats",
            )
        }
        names = ("repeats_asked", "target", "drafter", "dtype", "machine", "date", "command", "seconds")
        rest |= {name: getattr(self, name) for name in names}
        shown = [dataclasses.asdict(one) | {"drafted": one.drafted, "accepted": one.accepted} for one in self.showings]
        return {
            "pairs": [pair.as_json() for pair in self.pairs],
            "all": self.overall.as_json(),
            **rest,
            "showings": shown,
        }
