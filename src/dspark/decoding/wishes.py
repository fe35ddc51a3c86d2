"""What a request asks of its logits: biases, penalties, and no end before so many tokens.

All of it is a function of the request and of the ids before a token, so it is exact row by row: the row behind the
third draft knows the first three as written. The drafter knows nothing of it, which costs acceptance and no exactness.

Legend: N rows of a request's round, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dspark.foundation.errors import UserError

MOST = 1e4  # of a bias or penalty: far beyond any logit, and sums of them stay numbers


@dataclass(frozen=True)
class Wishes:
    """``bias`` is added to the logits of ids. What is in prompt or answer is divided by ``repetition`` (where a logit
    is negative, multiplied); what is in the answer loses ``presence``, and ``frequency`` for each time it is. No stop
    id comes before ``min_tokens`` tokens. UserError for numbers that are none, or beyond what leaves logits numbers
    (``MOST``; a repetition from 0.01 to 100).
    """

    bias: Mapping[int, float] = field(default_factory=dict)
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        numbers = {"presence": self.presence, "frequency": self.frequency, "repetition": self.repetition}
        numbers |= {f"bias of {token}": value for token, value in self.bias.items()}
        wrong = {name: value for name, value in numbers.items() if not abs(value) <= MOST}
        if wrong:
            said = ", ".join(f"{name} is {value}" for name, value in wrong.items())
            raise UserError(f"{said}; expected numbers from {-MOST:g} to {MOST:g}")
        if not 0.01 <= self.repetition <= 100 or self.min_tokens < 0:
            raise UserError(
                f"repetition is {self.repetition}, min_tokens {self.min_tokens}; expected 0.01 to 100, and 0 or more"
            )

    def check(self, vocabulary: int) -> None:
        """UserError for a bias of an id that the target does not have."""
        outside = [token for token in self.bias if not 0 <= token < vocabulary]
        if outside:
            raise UserError(f"a bias is given for the ids {outside}; the target has 0 to {vocabulary - 1}")

    def granted(
        self,
        logits_NV: Tensor,
        prompt: Sequence[int],
        output: Sequence[int],
        drafts: Sequence[int],
        stops: Collection[int],
    ) -> Tensor:
        """The logits ``[N, V]`` behind ``output`` and each of the N - 1 ``drafts``; a token stays possible."""
        granted_NV = logits_NV.clone()
        bias = _column(self.bias, logits_NV)
        written = Counter(output)
        for row, row_V in enumerate(granted_NV):
            if row:
                written[drafts[row - 1]] += 1
            if bias is not None:
                row_V[bias[0]] += bias[1]
            if self.repetition != 1:
                seen = torch.tensor(sorted({*prompt, *written}), device=row_V.device)
                some = row_V[seen]
                row_V[seen] = torch.where(some > 0, some / self.repetition, some * self.repetition)
            if self.presence or self.frequency:
                column = _column(written, logits_NV)
                if column is not None:
                    row_V[column[0]] -= self.presence + self.frequency * column[1]
            if len(output) + row < self.min_tokens and len(stops) < len(row_V):
                row_V[list(stops)] = -math.inf
        return granted_NV


def _column(values: Mapping[int, float], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Ids and what belongs to each."""
    if not values:
        return None
    return torch.tensor(list(values), device=like.device), torch.tensor(list(values.values())).to(like)
