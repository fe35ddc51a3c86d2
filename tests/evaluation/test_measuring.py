"""What is timed, in which order, and how the figures are pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dspark.evaluation.evaluate import Measuring, Run, Task, Trial, rotated, ways_of
from dspark.evaluation.identity import Comparison
from dspark.evaluation.intervals import _student, interval
from dspark.evaluation.summary import summarise
from dspark.speculation.acceptance import Round

WAYS = ways_of(["dspark"])
SECONDS = {"plain": 4.0, "dspark": 2.0, "ngram": 3.0}


def rounds(*accepted: int, drafted: int = 3) -> list[Round]:
    """A prefill token, then a round for each count of accepted drafts; every token is new."""
    result, token = [Round(0, (0,), 0, 0, 0, None)], 1
    for index, n in enumerate(accepted, start=1):
        result.append(Round(index, tuple(range(token, token + n + 1)), drafted, drafted, n, None))
        token += n + 1
    return result


def task(index: int, domain: str = "math") -> Task:
    return Task(domain, f"p{index}", [1, 2, 3], seed=index)


class Machine:
    """Decodes with a clock that only decoding advances, and notes what was asked of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, str]] = []

    def decode(self, task: Task, mode: str) -> list[Round]:
        self.asked.append((task.id, mode))
        self.now += SECONDS[mode]
        return rounds(3, 1) if mode == "dspark" else rounds(*[0] * 6, drafted=0)

    def judge(self, task: Task, plain: list[int], other: list[int]) -> Comparison:
        self.now += 1000  # comparing is not timed
        return Comparison()


def test_modes_are_interleaved_in_rotating_order_and_timed_alone() -> None:
    machine = Machine()
    tasks = [task(i) for i in range(6)]
    measuring = Measuring(WAYS, machine.decode, lambda: machine.now, machine.judge)
    trials = [measuring.trial(each, index) for index, each in enumerate(tasks)]
    warm_up, timed = machine.asked[:3], machine.asked[3:]
    assert warm_up == [("p0", way) for way in WAYS]
    assert [name for name, _ in timed] == [t.id for t in tasks for _ in WAYS]
    orders = [[way for _, way in timed[i : i + 3]] for i in range(0, len(timed), 3)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == sorted(WAYS * 2)
    for trial in trials:
        assert {mode: run.seconds for mode, run in trial.runs.items()} == SECONDS
        assert set(trial.comparisons) == {"dspark", "ngram"}
    sampled = Measuring(WAYS, machine.decode, lambda: machine.now).trial(tasks[0], 0)
    assert sampled.comparisons == {}


def test_every_way_takes_every_place_whatever_their_number() -> None:
    ways = ways_of(["one", "two", "three"])
    orders = [rotated(ways, index) for index in range(3, 3 + len(ways))]
    assert ways == ("plain", "one", "two", "three", "ngram")
    assert all(sorted(place) == sorted(ways) for place in zip(*orders, strict=True))


def trial(
    domain: str,
    spec: Sequence[int],
    seconds: float,
    comparison: Comparison | None = None,
    number: int = 0,
    benchmark: str = "",
    turn: int = 0,
) -> Trial:
    spec_rounds = rounds(*spec)
    tokens = sum(len(r.tokens) for r in spec_rounds)
    plain = Run(rounds(*[0] * (tokens - 1), drafted=0), float(tokens))  # one token a second
    runs = {"plain": plain, "dspark": Run(spec_rounds, seconds), "ngram": plain}
    comparisons: dict[str, Comparison] = {}
    if comparison is not None:
        comparisons = {"dspark": comparison, "ngram": Comparison()}
    return Trial(Task(domain, f"p{number}", [1, 2, 3], number, benchmark, turn), runs, comparisons)


def test_figures_are_pooled_and_macro_is_a_mean_over_domains() -> None:
    trials = [
        trial("math", [3, 3], 3.0, Comparison()),
        trial("math", [1], 1.5, Comparison(0, 1e-5, 1e-4), number=1),
        trial("chat", [0, 1], 4.0, Comparison(0, 1.0, 1e-4)),
    ]
    figures = summarise(trials, "dspark")
    math_, chat = figures["domains"]["math"], figures["domains"]["chat"]
    assert math_["tau"] == (4 + 4 + 2) / 3
    assert chat["tau"] == 3 / 2
    assert figures["tau"] == 13 / 5
    assert figures["macro_tau"] == (10 / 3 + 3 / 2) / 2
    assert math_["speedup"] == pytest.approx((9 + 3) / 4.5)  # pooled: not the mean of 3 and 2
    assert (figures["drafted"], figures["accepted"], figures["rounds"], figures["prompts"]) == (15, 8, 5, 3)
    assert figures["conditional_acceptance"] == [4 / 5, 2 / 4, 1.0]
    assert figures["survival"] == pytest.approx([4 / 5, 2 / 5, 2 / 5])
    assert figures["reached"] == [5, 4, 2]
    assert figures["too_few_rounds"] == [True] * 3
    assert figures["identical"] == {"equal": 1, "total": 3, "unexplained": 1}
    assert figures["identical_gaps"] == [1e-5, 1.0]
    assert figures["ngram_identical"] == {"equal": 3, "total": 3, "unexplained": 0}
    assert figures["ngram_speedup"] == 1
    assert (figures["repeat_share"], figures["tau_without_repeats"]) == (0, figures["tau"])


def test_loops_are_taken_out_of_tau() -> None:
    looping = [Round(0, (0,), 0, 0, 0, None)]
    looping += [Round(i, (1, 2, 3, 0), 3, 3, 3, None) for i in range(1, 9)]
    run = Run([*looping, Round(9, (9,), 3, 3, 0, "length")], 1.0)
    figures = summarise([Trial(task(0), dict.fromkeys(WAYS, run), {})], "dspark")
    assert figures["repeat_share"] > 0.5
    assert figures["tau"] == 33 / 9
    assert figures["tau_without_repeats"] == 4  # the rounds before the loop was one
    assert "identical" not in figures


@pytest.mark.parametrize(("groups", "size"), [(1, 5), (3, 2), (3, 4), (9, 4), (1, 60)])
def test_intervals_of_few_prompts_cover_as_they_say(groups: int, size: int) -> None:
    """Percentiles of the resamples as they are cover 69 to 89 % here (of 1,000), but for the last."""
    numbers, covered, plainly = np.random.default_rng(0), 0, 0
    for _ in range(300):
        sums = [np.stack((each, np.ones(size)), axis=1) for each in numbers.normal(1.0, 0.3, (groups, size))]
        low, high = interval(sums, lambda pooled: pooled[:, 0] / pooled[:, 1], resamples=500) or (9.0, 9.0)
        covered += low <= 1.0 <= high
        drawn = [each[numbers.integers(0, size, (500, size)), 0].mean(axis=1) for each in sums]
        low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
        plainly += low <= 1.0 <= high
    assert covered > 0.915 * 300
    assert (plainly < 0.915 * 300) == (size < 60), "control"


def test_student() -> None:
    tables = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 27: 2.052, 120: 1.980}
    for freedom, exact in tables.items():
        assert _student(freedom) == pytest.approx(exact, abs=4e-3)


def test_intervals_cover_and_depend_on_prompts_not_rounds() -> None:
    def mean(sums_bc: np.ndarray) -> np.ndarray:
        return np.asarray(sums_bc[:, 0] / sums_bc[:, 1])

    generator = np.random.default_rng(1)
    covered, repeats = 0, 200
    for _ in range(repeats):
        sums = np.stack((generator.normal(2.0, 0.5, 40), np.ones(40)), axis=1)
        low, high = interval([sums], mean, resamples=400) or (0.0, 0.0)
        assert low < high
        covered += low <= 2.0 <= high
    assert 0.88 <= covered / repeats <= 0.99
    constant = np.array([[3.0, 2.0], [6.0, 4.0], [1.5, 1.0]])
    assert interval([constant], mean) == [1.5, 1.5]
    assert interval([constant[:1]], mean) is None and interval([constant[:2]], mean) is None
    assert interval([constant[:1], 2 * constant[:1]], mean) is None, "one prompt a domain: every draw is the same"
    # Whole domains are never drawn or left out: two constant ones leave nothing to chance.
    assert interval([np.array([[1.0, 1.0]] * 2), np.array([[9.0, 1.0]] * 2)], mean) == [5.0, 5.0]


def test_nothing_drafted_gives_no_tau_and_no_error() -> None:
    single = Run([Round(0, (5,), 0, 0, 0, "length")], 0.5)
    figures = summarise([Trial(task(i), dict.fromkeys(WAYS, single), {}) for i in range(3)], "dspark")
    assert math.isnan(figures["tau"])
    assert figures["intervals"]["tau"] is None
    assert figures["intervals"]["speedup"] == [1, 1]
    assert figures["conditional_acceptance"] == []


def test_a_domain_of_benchmarks_is_their_mean_and_so_is_everything_of_domains() -> None:
    trials = [
        trial("math", [3, 3, 3], 1.0, benchmark="gsm8k"),
        trial("math", [1], 1.0, benchmark="aime25"),
        trial("chat", [0, 1], 1.0, benchmark="mt-bench"),
        trial("chat", [0], 1.0, benchmark="mt-bench", turn=1),
        trial("mine", [1, 1], 1.0),
    ]
    figures = summarise(trials, "dspark")
    benchmarks, domains = figures["benchmarks"], figures["domains"]
    assert {name: each["tau"] for name, each in benchmarks.items()} == {"gsm8k": 4, "aime25": 2, "mt-bench": 4 / 3}
    assert {name: each["domain"] for name, each in benchmarks.items()} == {
        "gsm8k": "math",
        "aime25": "math",
        "mt-bench": "chat",
    }
    assert domains["math"]["tau"] == 14 / 4 and domains["math"]["macro_tau"] == 3
    assert domains["mine"]["tau"] == domains["mine"]["macro_tau"] == 2
    assert figures["macro_tau"] == pytest.approx((3 + 4 / 3 + 2) / 3)
    assert (benchmarks["mt-bench"]["prompts"], benchmarks["mt-bench"]["answers"]) == (1, 2)
    assert benchmarks["mt-bench"]["intervals"]["tau"] is None, "the turns of one prompt are drawn together"
    assert (figures["prompts"], figures["answers"]) == (4, 5)
    assert "benchmarks" not in summarise(trials[-1:], "dspark")
