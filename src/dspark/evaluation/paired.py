"""Two drafters on the same prompts: ratios of what each gained, with intervals over the prompts that they share.

Legend: B resamples, N prompts, C sums a prompt (``sums_by_prompt`` of the two).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dspark.evaluation.evaluate import Trial
from dspark.evaluation.intervals import Floats, interval_of_groups
from dspark.evaluation.summary import Strata, by_domain, speed_ratio, strata_of, sums_by_prompt, tau_of

Statistic = Callable[[Sequence[Floats]], Floats]


def paired(trials: Sequence[Trial], way: str, over: str) -> dict[str, Any]:
    """What one drafter gained over another: ratios of tau, of macro tau and of tokens a second, ``[low, high]`` of each
    under ``intervals``; the same for each domain, and for each benchmark where there are any.

    A resample takes a prompt with what both made of it, so what is hard for both is no noise.
    """
    strata = strata_of(trials)
    ways = (way, over)
    result = {"over": over} | _ratios(strata, ways)
    result["domains"] = {name: _ratios(each, ways) for name, each in by_domain(strata).items()}
    benchmarks = {key[1]: _ratios({key: strata[key]}, ways) for key in strata if key[1]}
    return result | ({"benchmarks": benchmarks} if benchmarks else {})


def _ratios(strata: Strata, ways: tuple[str, str]) -> dict[str, Any]:
    groups = [sums_by_prompt(trials, ways) for trials in strata.values()]
    domains = [domain for domain, _ in strata]
    statistics: dict[str, Statistic] = {
        "tau": lambda sums: _tau_ratio(_pooled(sums)),
        "macro_tau": lambda sums: _macro(sums, domains, 0) / _macro(sums, domains, 4),
        "tok_s": lambda sums: speed_ratio(_pooled(sums)),
    }
    whole = [group.sum(axis=0, keepdims=True) for group in groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        found: dict[str, Any] = {name: float(statistic(whole)[0]) for name, statistic in statistics.items()}
    found["intervals"] = {name: interval_of_groups(groups, statistic) for name, statistic in statistics.items()}
    return found


def _pooled(sums: Sequence[Floats]) -> Floats:
    return sum(sums[1:], start=sums[0])


def _tau_ratio(sums_BC: Floats) -> Floats:
    ratio: Floats = tau_of(sums_BC) / tau_of(sums_BC[:, 4:])
    return ratio


def _macro(sums: Sequence[Floats], domains: Sequence[str], first: int) -> Floats:
    """Mean over domains of the mean over their strata of tau, of the way whose sums start there: [B]."""
    taus: dict[str, list[Floats]] = {}
    for domain, sums_BC in zip(domains, sums, strict=True):
        taus.setdefault(domain, []).append(tau_of(sums_BC[:, first:]))
    means: Floats = np.mean([np.mean(each, axis=0) for each in taus.values()], axis=0)
    return means
