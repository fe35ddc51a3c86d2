"""How many drafts are worth verifying: Algorithm 1.

Losslessness forbids a search over the whole block: a_k knows x_1..x_{k-1}, so the length that looks best in hindsight
depends on the very tokens whose verification it decides (App. A). Walked from the left and stopped at the first draft
that does not pay, the decision about x_k rests on what was known before x_k was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dspark.foundation.errors import UserError


@dataclass(frozen=True)
class EarlyStop:
    """Algorithm 1 for a single request, as a ``VerifyLength``.

    ``seconds[l]``: what a complete round takes that verifies ``l`` drafts, for l = 0..K; its reciprocals are the
    paper's SPS. Without survival (a drafter without a confidence head) every draft is verified. UserError for seconds
    that are none.
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds or not all(0 < each < float("inf") for each in self.seconds):
            raise UserError(f"rounds take {list(self.seconds)} seconds; expected positive numbers, one for each length")

    def __call__(self, drafted: int, survival: Tensor | None) -> int:
        """Length to verify; never more than there are costs for."""
        if survival is None:
            return drafted
        return early_stop(survival[:drafted].tolist(), self.seconds)


def early_stop(survival: Sequence[float], seconds: Sequence[float]) -> int:
    """The first length from which one draft more does not raise the expected tokens a second.

    ``survival``: a_1..a_K; the target's own token counts as certain.
    """
    expected, rate = 1.0, 1.0 / seconds[0]
    for length, (a, duration) in enumerate(zip(survival, seconds[1:], strict=False)):
        expected += a
        if expected / duration <= rate:
            return length
        rate = expected / duration
    return min(len(survival), len(seconds) - 1)
