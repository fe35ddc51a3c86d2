"""From trials to the figures of an evaluation, pooled as the specification says.

tau: output tokens minus one an answer over rounds. Speed-up: ratio of pooled tokens a second, prefill
included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dspark.evaluation.evaluate import NGRAM, PLAIN, Trial
from dspark.evaluation.identity import IdentityTally
from dspark.evaluation.intervals import Floats, interval
from dspark.evaluation.repeats import repeat_share, rounds_outside_repeats
from dspark.speculation.acceptance import RoundTally, Source

# Positions reached in fewer rounds are reported, not judged.
ENOUGH_ROUNDS = 200

Strata = Mapping[tuple[str, str], Sequence[Trial]]


def summarise(trials: Sequence[Trial], way: str) -> dict[str, Any]:
    """All figures of one drafter: pooled over everything, for each domain under ``domains`` and, where there are any,
    for each benchmark under ``benchmarks``.

    ``macro_tau`` of a domain is the mean over its benchmarks (of files: its tau), that of everything the mean over
    domains. Acceptance by position is of the drafter's own rounds, without those that lookup spared it. Undefined
    figures are NaN (no rounds) or None (no interval).
    """
    strata = strata_of(trials)
    domains = {name: _domain(each, way) for name, each in by_domain(strata).items()}
    result = {"macro_tau": mean([each["macro_tau"] for each in domains.values()]), **_figures(strata, way)}
    result["domains"] = domains
    benchmarks = {key[1]: {"domain": key[0]} | _figures({key: strata[key]}, way) for key in strata if key[1]}
    return result | ({"benchmarks": benchmarks} if benchmarks else {})


def strata_of(trials: Sequence[Trial]) -> dict[tuple[str, str], list[Trial]]:
    """Trials by (domain, benchmark), within which prompts are drawn anew for intervals."""
    strata: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        strata.setdefault((trial.task.domain, trial.task.benchmark), []).append(trial)
    return strata


def by_domain(strata: Strata) -> dict[str, Strata]:
    """The strata of each domain."""
    names = dict.fromkeys(domain for domain, _ in strata)
    return {name: {key: trials for key, trials in strata.items() if key[0] == name} for name in names}


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def sums_by_prompt(trials: Sequence[Trial], ways: Sequence[str]) -> Floats:
    """``[N, 4 * ways]``: of N prompts, all turns together, and of each way the tokens gained, rounds, tokens and
    seconds.
    """
    sums: dict[str, Floats] = {}
    for trial in trials:
        row = [figure for way in ways for figure in _counts(trial, way)]
        sums[trial.task.id] = sums.get(trial.task.id, 0.0) + np.array(row, dtype=np.float64)
    return np.array([*sums.values()])


def _counts(trial: Trial, way: str) -> list[float]:
    run = trial.runs[way]
    tokens = len(run.ids)
    return [tokens - len(run.rounds[0].tokens), len(run.rounds) - 1, tokens, run.seconds]


def _domain(strata: Strata, way: str) -> dict[str, Any]:
    taus = [tally_of(trials, way).tau for trials in strata.values()]
    return {"macro_tau": mean(taus), **_figures(strata, way)}


def _figures(strata: Strata, way: str) -> dict[str, Any]:
    """Figures of all trials together; the strata only matter to the intervals."""
    trials = [trial for each in strata.values() for trial in each]
    tally, ngrams = tally_of(trials, way), tally_of(trials, NGRAM)
    own, copied = tally_of(trials, way, "drafter"), tally_of(trials, way, "lookup")
    outside = RoundTally()
    for trial in trials:
        outside.extend(rounds_outside_repeats(trial.runs[way].rounds))
    plain, spec, ngram = (tokens_a_second(trials, each) for each in (PLAIN, way, NGRAM))
    sums = [sums_by_prompt(each, (way, PLAIN)) for each in strata.values()]
    figures: dict[str, Any] = {
        "prompts": sum(len(each) for each in sums),
        "answers": len(trials),
        "tau": tally.tau,
        "speedup": spec / plain,
        "tok_s": spec,
        "plain_tok_s": plain,
        "rounds": tally.rounds,
        "tokens": tally.tokens + tally.prompts,
        "drafted": tally.drafted,
        "verified": tally.verified,
        "accepted": tally.accepted,
        "sources": {name: {"rounds": t.rounds, "tau": t.tau} for name, t in (("drafter", own), ("lookup", copied))},
        "conditional_acceptance": own.conditional_acceptance,
        "survival": own.survival,
        "reached": list(own.observed_at),
        "too_few_rounds": [n < ENOUGH_ROUNDS for n in own.observed_at],
        "ngram_tau": ngrams.tau,
        "ngram_tok_s": ngram,
        "ngram_speedup": ngram / plain,
        "repeat_share": repeat_share(trial.runs[way].ids for trial in trials),
        "tau_without_repeats": outside.tau,
        "intervals": {"tau": interval(sums, tau_of), "speedup": interval(sums, speed_ratio)},
    }
    if any(trial.comparisons for trial in trials):
        drafted, looked_up = identity_of(trials, way), identity_of(trials, NGRAM)
        figures |= {"identical": drafted.as_json(), "identical_gaps": drafted.gaps}
        figures |= {"ngram_identical": looked_up.as_json(), "ngram_identical_gaps": looked_up.gaps}
    return figures


def tally_of(trials: Sequence[Trial], way: str, source: Source | None = None) -> RoundTally:
    """Pooled counts of the rounds of one way; with a source, of those alone whose draft came from it."""
    tally = RoundTally()
    for trial in trials:
        rounds = trial.runs[way].rounds
        tally.extend(r for r in rounds if source is None or not r.index or (r.drafted and r.source == source))
    return tally


def tokens_a_second(trials: Sequence[Trial], way: str) -> float:
    """Pooled output tokens over pooled seconds; NaN where no time has passed."""
    tokens = sum(len(trial.runs[way].ids) for trial in trials)
    seconds = sum(trial.runs[way].seconds for trial in trials)
    return tokens / seconds if seconds else math.nan


def identity_of(trials: Sequence[Trial], way: str) -> IdentityTally:
    """Texts of one way beside plain's."""
    tally = IdentityTally()
    for trial in trials:
        tally.add(trial.comparisons[way])
    return tally


def tau_of(sums_BC: Floats) -> Floats:
    """tau of the first way of ``sums_by_prompt``: [B]."""
    tau: Floats = sums_BC[:, 0] / sums_BC[:, 1]
    return tau


def speed_ratio(sums_BC: Floats) -> Floats:
    """Tokens a second of the first way over those of the second: [B]."""
    ratio: Floats = sums_BC[:, 2] / sums_BC[:, 3] / (sums_BC[:, 6] / sums_BC[:, 7])
    return ratio
