"""95 % bootstrap intervals over prompts.

Drawn anew, few prompts vary less than they do themselves: by (n - 1) / n of their variance, within each domain, and
what that variance is they hardly know. So percentiles are stretched away from the figure, by a ratio (all figures here
are positive): as far as undoes the first and as Student's t asks for the second. Of many prompts they are the usual
ones. (Hesterberg, What Teachers Should Know About the Bootstrap, 2015, says how narrow percentiles are, and moves them
outwards; of two prompts a domain no percentile is far enough outside.)

Shapes: `_N` prompts, `_NC` sums a prompt, `_B` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
_TAIL = 2.5  # per cent on each side
_Z = 1.959964  # standard errors that 95 % of a normal distribution lie within
_OF_TWO = 4.3027  # the same of Student's t with two degrees of freedom


def interval(
    groups: Sequence[Floats], statistic: Callable[[Floats], Floats], resamples: int = RESAMPLES
) -> list[float] | None:
    """[low, high] of a pooled figure, or None where prompts say hardly anything of their spread: without three of one
    domain, or two of each of two.

    groups[g] holds one domain's sums[N, C], one row a prompt; ``statistic`` takes the pooled sums[B, C] to
    figures[B]. Prompts are drawn with replacement within their domain, whose sizes were chosen and not drawn.
    The same seed every time, so the same data give the same interval.
    """
    return interval_of_groups(groups, lambda sums: statistic(sum(sums[1:], start=sums[0])), resamples)


def interval_of_groups(
    groups: Sequence[Floats], statistic: Callable[[Sequence[Floats]], Floats], resamples: int = RESAMPLES
) -> list[float] | None:
    """The same of a figure that is not pooled: ``statistic`` takes the sums[B, C] of each group that has prompts."""
    sizes = [len(group) for group in groups if len(group) > 1]
    if sum(sizes) - len(sizes) < 2:
        return None
    generator = np.random.default_rng(0)
    sums = [_resampled_sums(group, generator, resamples) for group in groups if len(group)]
    with np.errstate(divide="ignore", invalid="ignore"):
        figures_B = statistic(sums)
    finite_B = figures_B[np.isfinite(figures_B)]
    if not len(finite_B):
        return None
    figure = float(statistic([group.sum(axis=0, keepdims=True) for group in groups if len(group)])[0])
    stretch = _stretch(sizes)
    low, high = np.percentile(finite_B, [_TAIL, 100 - _TAIL])
    if not (figure > 0 and low > 0):  # none of the figures here, unless nothing was decoded
        return [float(low), float(high)]
    return [figure * math.pow(bound / figure, stretch) for bound in (low, high)]


def _stretch(sizes: Sequence[int]) -> float:
    """How much farther out than percentiles of resamples, for groups of so many prompts, two or more each."""
    prompts = sum(sizes)
    known = prompts - len(sizes)
    return _student(known) * math.sqrt(prompts / known) / _Z


def _student(freedom: int) -> float:
    """Standard errors that 95 % of Student's t lie within (Abramowitz and Stegun 26.7.5, to a few thousandths)."""
    if freedom == 2:
        return _OF_TWO
    z, n = _Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, 1))


def _resampled_sums(sums_NC: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """Sums over N prompts drawn with replacement: [B, C]."""
    # Drawing how often each prompt comes needs no array of [B, N, C].
    n = len(sums_NC)
    counts_BN = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    result: Floats = counts_BN @ sums_NC
    return result
