"""Runs of a comparison, and what several seeds of one arm say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dspark.report.figures import Between, spread
from dspark.report.records.positions import Acceptance

HELD_OUT = "held-out answers, teacher-forced, greedy"


@dataclass(frozen=True)
class Context:
    """Rounds that began at a context of so many tokens, and their tau."""

    low: float
    high: float
    tau: float
    rounds: int


@dataclass(frozen=True)
class Decoded:
    """Real decoding of prompts in one way of sampling, whole blocks verified."""

    tau: float
    macro_tau: float
    interval: tuple[float, float]
    domains: Mapping[str, float]
    rates: tuple[float, ...]
    reached: tuple[int, ...]
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens a second over plain decoding's, and tokens gained a round meanwhile."""

    speedup: float
    interval: tuple[float, float]
    tau: float


@dataclass(frozen=True)
class Trial:
    """A drafter trained once, or a baseline that needs no training (NaN where a figure does not apply)."""

    arm: str
    tables: frozenset[str]
    seed: int
    layers: float
    block: float
    lr: float
    steps: float
    tokens: float
    seconds: float
    head_share: float
    held_out: float
    held_out_greedy: float
    decoded: Mapping[str, Decoded]
    speed: Mapping[str, Speed]


@dataclass(frozen=True)
class Arm:
    """All seeds of an arm."""

    name: str
    trials: tuple[Trial, ...]

    @property
    def family(self) -> str:
        """What it has in common with arms of another size: "DSpark vanilla" of "DSpark vanilla, 1 layer"."""
        return self.name.partition(", ")[0]

    @property
    def first(self) -> Trial:
        """For what all seeds have alike."""
        return self.trials[0]

    def over_seeds(self, figure: Callable[[Trial], float]) -> Between:
        """Mean, with the least and the largest of several seeds."""
        return spread([figure(each) for each in self.trials])

    def macro(self, regime: str) -> Between:
        """Macro tau of a way of sampling; of held-out answers their tau."""
        if regime == HELD_OUT:
            return self.over_seeds(lambda trial: trial.held_out_greedy)
        return spread([each.macro_tau for each in self.decoded(regime)])

    def decoded(self, regime: str) -> list[Decoded]:
        """By every seed that was decoded in this way of sampling."""
        return [each.decoded[regime] for each in self.trials if regime in each.decoded]

    def acceptance(self, regime: str) -> Acceptance:
        """Pooled over the seeds: accepted over reached, position by position."""
        columns = [list(zip(each.rates, each.reached, strict=True)) for each in self.decoded(regime)]
        longest = max(map(len, columns))
        reached = [sum(each[k][1] for each in columns if k < len(each)) for k in range(longest)]
        rates = [pooled([each[k] for each in columns if k < len(each)]) for k in range(longest)]
        return Acceptance(self.name, tuple(rates), tuple(reached))

    def contexts(self, regime: str) -> list[Context]:
        """Pooled over the seeds, by context."""
        found: dict[tuple[float, float], list[tuple[float, int]]] = {}
        for each in self.decoded(regime):
            for context in each.contexts:
                found.setdefault((context.low, context.high), []).append((context.tau, context.rounds))
        return [Context(*ends, pooled(each), sum(n for _, n in each)) for ends, each in sorted(found.items())]


def pooled(weighed: Sequence[tuple[float, int]]) -> float:
    """Mean of figures by how many rounds stand behind each; NaN of none."""
    rounds = sum(count for _, count in weighed)
    return sum(value * count for value, count in weighed if count) / rounds if rounds else float("nan")


def arms_of(trials: Sequence[Trial], table: str) -> list[Arm]:
    """Those of a table, in the order of their first runs."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if table in trial.tables:
            found.setdefault(trial.arm, []).append(trial)
    return [Arm(name, tuple(each)) for name, each in found.items()]


def regimes_of(arms: Sequence[Arm]) -> list[str]:
    """Ways of sampling that any of them was decoded in; held-out answers where none was."""
    found = dict.fromkeys(regime for arm in arms for trial in arm.trials for regime in trial.decoded)
    return [*found] or [HELD_OUT]
