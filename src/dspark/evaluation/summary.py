"""From trials to the figures of an evaluation, pooled as the specification says.

tau: output tokens minus one a prompt over rounds. Speed-up: ratio of pooled tokens a second, prefill
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dspark.evaluation.evaluate import Mode, Trial
from dspark.evaluation.identity import IdentityTally
from dspark.evaluation.intervals import Floats, interval
from dspark.evaluation.repeats import repeat_share, rounds_outside_repeats
from dspark.speculation.acceptance import RoundTally, Source

# Positions reached in fewer rounds are reported, not judged.
ENOUGH_ROUNDS = 200


def summarise(trials: Sequence[Trial]) -> dict[str, Any]:
    """All figures: pooled over everything, and the same for each domain under ``domains``.

    ``macro_tau`` is the mean over domains. Acceptance by position is of the drafter's own rounds, without those that
    lookup spared it. Undefined figures are NaN (no rounds) or None (no interval).
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.task.domain, []).append(trial)
    domains = {name: _figures([group]) for name, group in groups.items()}
    taus = [figures["tau"] for figures in domains.values()]
    macro = sum(taus) / len(taus) if taus else float("nan")
    return {"macro_tau": macro, **_figures(list(groups.values())), "domains": domains}


def _figures(groups: Sequence[Sequence[Trial]]) -> dict[str, Any]:
    """Figures of the trials of all groups together; groups only matter to the intervals."""
    trials = [trial for group in groups for trial in group]
    tally, ngrams = tally_of(trials, "dspark"), tally_of(trials, "ngram")
    own, copied = tally_of(trials, "dspark", "drafter"), tally_of(trials, "dspark", "lookup")
    outside = RoundTally()
    for trial in trials:
        outside.extend(rounds_outside_repeats(trial.runs["dspark"].rounds))
    plain, spec, ngram = (tokens_a_second(trials, mode) for mode in ("plain", "dspark", "ngram"))
    sums = [np.array([_sums(trial) for trial in group], dtype=np.float64) for group in groups]
    figures: dict[str, Any] = {
        "prompts": len(trials),
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
        "repeat_share": repeat_share(trial.runs["dspark"].ids for trial in trials),
        "tau_without_repeats": outside.tau,
        "intervals": {"tau": interval(sums, _tau), "speedup": interval(sums, _speedup)},
    }
    if any(trial.comparisons for trial in trials):
        drafted, looked_up = identity_of(trials, "dspark"), identity_of(trials, "ngram")
        figures |= {"identical": drafted.as_json(), "identical_gaps": drafted.gaps}
        figures |= {"ngram_identical": looked_up.as_json(), "ngram_identical_gaps": looked_up.gaps}
    return figures


def tally_of(trials: Sequence[Trial], mode: Mode, source: Source | None = None) -> RoundTally:
    """Pooled counts of the rounds of one mode; with a source, of those alone whose draft came from it."""
    tally = RoundTally()
    for trial in trials:
        rounds = trial.runs[mode].rounds
        tally.extend(r for r in rounds if source is None or not r.index or (r.drafted and r.source == source))
    return tally


def tokens_a_second(trials: Sequence[Trial], mode: Mode) -> float:
    """Pooled output tokens over pooled seconds; NaN where no time has passed."""
    tokens = sum(len(trial.runs[mode].ids) for trial in trials)
    seconds = sum(trial.runs[mode].seconds for trial in trials)
    return tokens / seconds if seconds else float("nan")


def identity_of(trials: Sequence[Trial], mode: Mode) -> IdentityTally:
    """Texts of one mode beside plain's."""
    tally = IdentityTally()
    for trial in trials:
        tally.add(trial.comparisons[mode])
    return tally


def _sums(trial: Trial) -> list[float]:
    """What the intervals are made of: tokens gained, rounds, and tokens and seconds of both modes."""
    spec, plain = trial.runs["dspark"], trial.runs["plain"]
    rounds = len(spec.rounds) - 1
    gained = len(spec.ids) - len(spec.rounds[0].tokens)
    return [gained, rounds, len(spec.ids), spec.seconds, len(plain.ids), plain.seconds]


def _tau(sums_BC: Floats) -> Floats:
    tau: Floats = sums_BC[:, 0] / sums_BC[:, 1]
    return tau


def _speedup(sums_BC: Floats) -> Floats:
    ratio: Floats = sums_BC[:, 2] / sums_BC[:, 3] / (sums_BC[:, 4] / sums_BC[:, 5])
    return ratio
