"""From a finished race to the record that the terminal, the page and --json show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from dspark.evaluation.identity import Comparison
from dspark.evaluation.race import Lap, Race, Way
from dspark.evaluation.repeats import repeat_share, rounds_outside_repeats
from dspark.report.demo import PairFigures, RoundBar, Showing, Spread, Verdict
from dspark.report.spans import spans
from dspark.speculation.acceptance import RoundTally

Text = Callable[[Sequence[int]], str]


def showing_of(lap: Lap, prompt: str, decode: Text) -> Showing:
    """One prompt's two texts."""
    plain, spec = lap.runs["plain"], lap.runs["dspark"]
    return Showing(
        id=lap.task.id,
        domain=lap.task.domain,
        prompt=prompt,
        plain_text=decode(plain.ids),
        plain_tokens=len(plain.ids),
        plain_tok_s=len(plain.ids) / plain.seconds,
        spec_spans=spans(decode, [(each.tokens, each.accepted) for each in spec.rounds]),
        spec_tokens=len(spec.ids),
        spec_tok_s=len(spec.ids) / spec.seconds,
        rounds=tuple(
            RoundBar(r.drafted, r.accepted, len(r.tokens), r.source == "lookup") for r in spec.rounds if r.index
        ),
        tau=_tally([lap]).tau,
        verdict=verdict_of(lap.comparison),
    )


def verdict_of(comparison: Comparison) -> Verdict:
    """The comparison as a record."""
    return Verdict(comparison.equal, comparison.unexplained, comparison.position, comparison.gap, comparison.allowed)


def pairs_of(race: Race) -> tuple[tuple[PairFigures, ...], PairFigures]:
    """Figures of each domain in the order of the prompts, and of all prompts together."""
    domains = dict.fromkeys(task.domain for task in race.tasks)
    pairs = tuple(_figures(race, name, {name}) for name in domains)
    return pairs, _figures(race, "all", set(domains))


def step_and_round_ms(race: Race) -> tuple[float, float]:
    """Milliseconds of a plain step and of a speculative round: means of a repeat's whole ones, medians over repeats.

    Rounds that draft are dearer than those that do not, so a median over rounds would be the price of one kind.
    """
    return _milliseconds(race, "plain"), _milliseconds(race, "dspark")


def _figures(race: Race, name: str, domains: set[str]) -> PairFigures:
    shown = _of(race.shown, domains)
    repeats = [_of(repeat, domains) for repeat in race.repeats]
    plain, spec = ([_tok_s(repeat, way) for repeat in repeats] for way in ("plain", "dspark"))
    tally = _tally([lap for repeat in repeats for lap in repeat])
    outside = RoundTally()
    for lap in shown:
        outside.extend(rounds_outside_repeats(lap.runs["dspark"].rounds))
    agreed: dict[str, bool] = {}
    wrong: set[str] = set()
    for lap in [*shown, *(lap for repeat in repeats for lap in repeat)]:
        agreed[lap.task.id] = agreed.get(lap.task.id, True) and lap.comparison.equal
        if lap.comparison.unexplained:
            wrong.add(lap.task.id)
    return PairFigures(
        domain=name,
        plain=Spread.of(plain),
        spec=Spread.of(spec),
        speedup_spread=Spread.of([s / p for s, p in zip(spec, plain, strict=True)]),
        tau=tally.tau,
        drafted=tally.drafted,
        accepted=tally.accepted,
        equal=sum(agreed.values()),
        total=len(agreed),
        unexplained=len(wrong),
        shown_tau=_tally(shown).tau,
        repeat_share=repeat_share([lap.runs["dspark"].ids for lap in shown]),
        tau_without_repeats=outside.tau,
    )


def _of(laps: Sequence[Lap], domains: set[str]) -> list[Lap]:
    return [lap for lap in laps if lap.task.domain in domains]


def _tally(laps: Sequence[Lap]) -> RoundTally:
    tally = RoundTally()
    for lap in laps:
        tally.extend(lap.runs["dspark"].rounds)
    return tally


def _tok_s(laps: Sequence[Lap], way: Way) -> float:
    """Pooled tokens over pooled seconds."""
    return sum(len(lap.runs[way].ids) for lap in laps) / sum(lap.runs[way].seconds for lap in laps)


def _milliseconds(race: Race, way: Way) -> float:
    repeats = [[s for lap in repeat for s in lap.runs[way].later_seconds()] for repeat in race.repeats]
    means = [statistics.fmean(seconds) for seconds in repeats if seconds]
    return 1000 * statistics.median(means) if means else math.nan
