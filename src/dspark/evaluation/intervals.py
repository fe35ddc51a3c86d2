"""95 % bootstrap intervals over prompts.

Shapes: `_N` prompts, `_NC` sums a prompt, `_B` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
_TAIL = 2.5  # per cent on each side


def interval(
    groups: Sequence[Floats], statistic: Callable[[Floats], Floats], resamples: int = RESAMPLES
) -> list[float] | None:
    """[low, high] of a pooled figure, or None without two prompts of one domain, where nothing can be said.

    groups[g] holds one domain's sums[N, C], one row a prompt; ``statistic`` takes the pooled sums[B, C] to
    figures[B]. Prompts are drawn with replacement within their domain, whose sizes were chosen and not drawn.
    The same seed every time, so the same data give the same interval.
    """
    return interval_of_groups(groups, lambda sums: statistic(sum(sums[1:], start=sums[0])), resamples)


def interval_of_groups(
    groups: Sequence[Floats], statistic: Callable[[Sequence[Floats]], Floats], resamples: int = RESAMPLES
) -> list[float] | None:
    """The same of a figure that is not pooled: ``statistic`` takes the sums[B, C] of each group that has prompts."""
    if max(map(len, groups), default=0) < 2:  # one prompt a domain, each drawn every time: an interval of no width
        return None
    generator = np.random.default_rng(0)
    sums = [_resampled_sums(group, generator, resamples) for group in groups if len(group)]
    with np.errstate(divide="ignore", invalid="ignore"):
        figures_B = statistic(sums)
    finite_B = figures_B[np.isfinite(figures_B)]
    if not len(finite_B):
        return None
    low, high = np.percentile(finite_B, [_TAIL, 100 - _TAIL])
    return [float(low), float(high)]


def _resampled_sums(sums_NC: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """Sums over N prompts drawn with replacement: [B, C]."""
    # Drawing how often each prompt comes needs no array of [B, N, C].
    n = len(sums_NC)
    counts_BN = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    result: Floats = counts_BN @ sums_NC
    return result
