"""What a round gained, counted exactly as the specification pools it.

Shapes: `_K` drafted slots, `_V` vocabulary; leading dimensions are free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Finish = Literal["stop", "length"]
# What proposed a draft: the drafter's own weights, or a copy of what followed the same words before.
Source = Literal["drafter", "lookup"]


@dataclass(frozen=True)
class Round:
    """One round of one request. Round 0 is prefill: one token, nothing drafted.

    `tokens` are the output ids of the round, cut at the stop id or the limit. The first `accepted` of them
    are accepted drafts, what follows is the target's own token; accepted drafts behind the cut are not
    counted. `drafted` were proposed by `source`, `verified` of them were run through the target. `finish` is
    None while it goes on.
    """

    index: int
    tokens: tuple[int, ...]
    drafted: int
    verified: int
    accepted: int
    finish: Finish | None
    source: Source = "drafter"

    @property
    def observed(self) -> int:
        """Slots with a known fate: slot k counts where it was verified and all before it stand uncut."""
        return min(self.verified, len(self.tokens))


@dataclass
class RoundTally:
    """Pooled counts of the rounds of any number of prompts.

    tau = (output tokens minus one a prompt) / rounds: prefill's token and round are not counted.
    """

    prompts: int = 0
    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    observed_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)

    def add(self, round: Round) -> None:
        """Count one round."""
        if round.index == 0:
            self.prompts += 1
            return
        self.rounds += 1
        self.tokens += len(round.tokens)
        self.drafted += round.drafted
        self.verified += round.verified
        self.accepted += round.accepted
        self._widen(round.drafted)
        for k in range(round.observed):
            self.observed_at[k] += 1
            self.accepted_at[k] += k < round.accepted

    def extend(self, rounds: Iterable[Round]) -> None:
        """Count many rounds."""
        for round in rounds:
            self.add(round)

    @property
    def tau(self) -> float:
        """Tokens gained a round, the target's own included; NaN without rounds."""
        return self.tokens / self.rounds if self.rounds else float("nan")

    @property
    def conditional_acceptance(self) -> list[float]:
        """[K]: accepted at k over rounds where k was verified and k-1 accepted; NaN where there were none."""
        return [a / n if n else float("nan") for a, n in zip(self.accepted_at, self.observed_at, strict=True)]

    @property
    def survival(self) -> list[float]:
        """[K]: running product of the conditional acceptance; 0 from the first position that never was accepted."""
        result, product = [], 1.0
        for c in self.conditional_acceptance:
            product = product * c if product else 0.0
            result.append(product)
        return result

    def _widen(self, slots: int) -> None:
        missing = slots - len(self.observed_at)
        self.observed_at += [0] * missing
        self.accepted_at += [0] * missing


def acceptance_probability(p_d: Tensor, p_t: Tensor) -> Tensor:
    """Eq. 8: probability that a draft from p_d is accepted, 1 - TV: [..., V], [..., V] -> [...]."""
    return 1 - 0.5 * (p_d - p_t).abs().sum(dim=-1)


def survival(c: Tensor) -> Tensor:
    """a_k = prod_{i<=k} c_i of conditional probabilities: [..., K] -> [..., K], never increasing in k."""
    return c.cumprod(dim=-1)
