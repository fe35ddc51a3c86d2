"""The headline of a page of results: what the records say, in a line that is true of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dspark.report.reading import Found
from dspark.report.records.arms import Arm, arms_of, regimes_of
from dspark.report.records.bench import BENCH, Bench
from dspark.report.records.comparison import COMPARISON
from dspark.report.records.evaluation import EVALUATION, Drafter, Evaluation
from dspark.report.records.regime import Same
from dspark.report.story import busy, figure


@dataclass(frozen=True)
class Verdict:
    """``tiles``: the figures that matter most, by what they are; ``alarm``: what nobody may overlook."""

    headline: str
    sentence: str
    tiles: Mapping[str, str] = field(default_factory=dict)
    alarm: str = ""


def verdict_of(found: Sequence[Found]) -> Verdict:
    """Of an evaluation where there is one, else of what there is."""
    wrong = _unexplained(found)
    if wrong:
        alarm = (
            f"{wrong} texts with drafting differ from plain decoding's by more than rounding explains. Drafting must"
            " never change the text: the speeds below are worth nothing."
        )
        return Verdict("Drafting changed the text", _files(found), alarm=alarm)
    evaluations = [each.value for each in found if each.kind is EVALUATION]
    if evaluations:
        return _of_evaluation(evaluations[0], found)
    trials = [trial for each in found if each.kind is COMPARISON for trial in each.value]
    arms = arms_of(trials, "tokens") or arms_of(trials, "time")
    return _of_arms(arms, found) if arms else Verdict("What was measured", _files(found))


def cautions_of(found: Sequence[Found]) -> list[str]:
    """What a reader must know before believing the speeds."""
    disturbed = [f"{each.record.name} (load {each.facts['load before']})" for each in found if busy(each.facts)]
    if not disturbed:
        return []
    return [f"The machine was busy when these began, which disturbs their speeds: {', '.join(disturbed)}."]


def _of_evaluation(one: Evaluation, found: Sequence[Found]) -> Verdict:
    """The fastest drafter's gain, as far as its interval allows to speak of one."""
    best = max(one.drafters, key=lambda each: _or_least(each.all.speedup.value))
    speed, same = best.all.speedup, best.all.same
    tiles = {
        "times plain decoding's tokens a second": figure(speed.value),
        "tokens gained a round (tau)": figure(best.all.tau.value),
    }
    if same:
        tiles["texts identical to plain decoding"] = f"{same.equal}/{same.total}"
    among = f", of {len(one.drafters)} drafters the fastest" if len(one.drafters) > 1 else ""
    interval = f", speed-up {speed.value:.2f} [{speed.low:.2f}, {speed.high:.2f}]" if math.isfinite(speed.low) else ""
    sentence = (
        f"{one.target} with the drafter {best.name}{among}, on {best.all.prompts} prompts{interval}; {one.regime}."
        f" {_files(found)}"
    )
    return Verdict(_headline(best), sentence, tiles)


def _headline(best: Drafter) -> str:
    speed, same = best.all.speedup, best.all.same
    text = "" if same is None else "The same text, " if same.equal == same.total else "The same text but for ties, "
    if not math.isfinite(speed.value):
        said = "no speed known"
    elif math.isfinite(speed.low) and speed.low <= 1 <= speed.high:
        said = f"no gain shown ({speed.value:.2f} times the speed)"
    else:
        said = f"{speed.value:.2f} times the speed"
    return text + said if text else said[0].upper() + said[1:]


def _of_arms(arms: Sequence[Arm], found: Sequence[Found]) -> Verdict:
    regime = regimes_of(arms)[0]
    best = max(arms, key=lambda arm: _or_least(arm.macro(regime).value))
    tau = best.macro(regime).value
    sentence = f"Of {len(arms)} drafters under equal conditions, {regime}. {_files(found)}"
    return Verdict(f"{best.name} gains most a round: macro tau {figure(tau)}", sentence)


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _unexplained(found: Sequence[Found]) -> int:
    """Texts that drafting changed, of all records."""
    sames: list[Same | None] = []
    for each in found:
        if each.kind is EVALUATION:
            sames += [drafter.all.same for drafter in each.value.drafters]
        elif each.kind is BENCH:
            bench: Bench = each.value
            sames += [row.same for row in bench.rows]
    return sum(same.unexplained for same in sames if same)


def _files(found: Sequence[Found]) -> str:
    return f"Made from {len(found)} record{'s' if len(found) != 1 else ''}, which are listed at the end."
