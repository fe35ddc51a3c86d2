"""The race under a clock of our own: what is timed, in which order, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from dspark.cli.demo_record import pairs_of, showing_of, step_and_round_ms
from dspark.evaluation.evaluate import Task
from dspark.evaluation.identity import Comparison
from dspark.evaluation.race import FEWEST_REPEATS, FEWEST_TOKENS, Cost, Race, Way, timed
from dspark.speculation.acceptance import Round

PREFILL, BLOCK = 0.3, 4


class Machine:
    """A clock, and decodings that move it; the speculative ones gain 3 tokens a round."""

    def __init__(self, step: float = 0.05, turn: float = 0.07, slower: tuple[float, ...] = (1.0,)) -> None:
        self.now = 100.0
        self.step, self.turn, self.slower = step, turn, slower
        self.log: list[tuple[str, Way, int]] = []
        self.judged = 0
        self.wrong: dict[str, int] = {}  # task -> output position at which drafting changes the token

    def clock(self) -> float:
        return self.now

    def decode(self, task: Task, way: Way, max_tokens: int) -> Iterator[Round]:
        # Each pair of decodings runs on a machine that is that many times slower.
        pace = self.slower[len(self.log) // 2 % len(self.slower)]
        self.log.append((task.id, way, max_tokens))
        self.now += PREFILL * pace
        yield Round(0, (0,), 0, 0, 0, None)
        done, index = 1, 0
        while done < max_tokens:
            index += 1
            gain = 1 if way == "plain" else min(3, max_tokens - done)
            ids = [t + 1000 * (way == "dspark" and t == self.wrong.get(task.id)) for t in range(done, done + gain)]
            done += gain
            self.now += pace * (self.step if way == "plain" else self.turn)
            drafted = BLOCK if way == "dspark" else 0
            yield Round(index, tuple(ids), drafted, drafted, gain - 1, "length" if done == max_tokens else None)

    def judge(self, task: Task, plain_ids: list[int], spec_ids: list[int]) -> Comparison:
        self.judged += 1
        self.now += 1.0  # never part of a decoding's time
        if plain_ids == spec_ids:
            return Comparison()
        position = next(i for i, (a, b) in enumerate(zip(plain_ids, spec_ids, strict=True)) if a != b)
        return Comparison(position, gap=0.5, allowed=0.1 if task.id == "b" else 1.0)


TASKS = [Task("math", "a", [1], 0), Task("code", "b", [1], 0), Task("chat", "c", [1], 0), Task("chat", "d", [1], 0)]


def run(machine: Machine, seconds: float, repeats: int = 5, max_tokens: int = 49) -> Race:
    race = Race(TASKS, machine.decode, machine.judge, machine.clock, seconds, max_tokens)
    race.warm_up()
    for task in TASKS:
        race.show(task)
    race.set_length(repeats)
    while race.wants_another(repeats):
        race.repeat()
    return race


def test_times_are_those_of_the_decodings() -> None:
    machine = Machine()
    one = timed(machine.decode(TASKS[0], "dspark", 10), machine.clock)
    assert one.round_seconds == pytest.approx([PREFILL, 0.07, 0.07, 0.07])
    assert one.seconds == pytest.approx(PREFILL + 0.21)
    assert one.ids == list(range(10))
    assert one.later_seconds() == pytest.approx([0.07, 0.07])


def test_with_time_enough_everything_runs_at_full_length_in_fair_order() -> None:
    machine = Machine()
    race = run(machine, seconds=10_000)
    assert (race.shown_tokens, race.repeat_tokens, len(race.repeats)) == (49, 49, 5)
    assert machine.log[:4] == [("a", "plain", 12), ("a", "dspark", 12)] * 2  # warm-up, in no figure
    assert machine.log[4:6] == [("a", "plain", 49), ("a", "dspark", 49)]
    timed_part = machine.log[4 + 2 * len(TASKS) :]
    firsts: dict[str, list[Way]] = {}
    for (name, way, tokens), (other, second, _) in zip(timed_part[::2], timed_part[1::2], strict=True):
        assert (name, tokens) == (other, 49)
        assert {way, second} == {"plain", "dspark"}
        firsts.setdefault(name, []).append(way)
    for ways in firsts.values():
        assert all(before != after for before, after in zip(ways, ways[1:], strict=False))
    assert {ways[0] for ways in firsts.values()} == {"plain", "dspark"}


def test_medians_are_over_repeats_of_pooled_rates() -> None:
    # Two warm-up pairs, four shown; then four pairs a repeat: a repeat has one pace.
    paces = (1.0,) * 6 + (2.0,) * 4 + (1.0,) * 4 + (8.0,) * 4 + (3.0,) * 4 + (1.0,) * 4
    race = run(Machine(slower=paces), seconds=1e6)
    pairs, overall = pairs_of(race)
    assert [pair.domain for pair in pairs] == ["math", "code", "chat"]
    assert overall.domain == "all"
    plain, spec = 49 / (PREFILL + 48 * 0.05), 49 / (PREFILL + 16 * 0.07)
    for pair in (*pairs, overall):
        assert pair.plain.median == pytest.approx(plain / 2)
        assert (pair.plain.low, pair.plain.high) == (pytest.approx(plain / 3), pytest.approx(plain))
        assert pair.spec.median == pytest.approx(spec / 2)
        assert pair.speedup == pytest.approx(spec / plain)
        assert (pair.speedup_spread.low, pair.speedup_spread.high) == (
            pytest.approx(spec / plain),
            pytest.approx(spec / plain),
        )
        assert pair.tau == 3.0
        assert (pair.equal, pair.unexplained) == (pair.total, 0)
    assert [pair.total for pair in pairs] == [1, 1, 2]
    assert overall.drafted == 5 * 4 * 16 * BLOCK
    assert overall.accepted == 5 * 4 * 16 * 2


def test_step_and_round_are_those_of_whole_rounds() -> None:
    step_ms, round_ms = step_and_round_ms(run(Machine(), seconds=1e6))
    assert (step_ms, round_ms) == (pytest.approx(50), pytest.approx(70))


def test_a_round_takes_the_mean_of_dear_and_cheap_ones() -> None:
    race = run(Machine(), seconds=1e6)
    for repeat in race.repeats:
        for lap in repeat:
            seconds = lap.runs["dspark"].round_seconds
            dear = tuple(s if i % 4 else 9 * s for i, s in enumerate(seconds))
            lap.runs["dspark"] = replace(lap.runs["dspark"], round_seconds=dear)
    later = [s for lap in race.repeats[0] for s in lap.runs["dspark"].later_seconds()]
    assert step_and_round_ms(race)[1] == pytest.approx(1000 * sum(later) / len(later)) and max(later) > 5 * min(later)


@pytest.mark.parametrize("seconds", [110.0, 150.0, 200.0])
def test_all_repeats_are_made_and_shortened_to_the_budget(seconds: float) -> None:
    machine = Machine()
    machine.judge = lambda task, plain_ids, spec_ids: Comparison()  # type: ignore[method-assign]
    started = machine.now
    race = run(machine, seconds, max_tokens=600)
    assert FEWEST_TOKENS < race.repeat_tokens < race.shown_tokens < 600
    assert len(race.repeats) == 5
    assert 0.85 * seconds <= machine.now - started <= 1.02 * seconds


def test_no_repeat_begins_when_the_time_is_up_but_three_are_made() -> None:
    # The machine becomes ten times slower when the repeats begin.
    paces = (1.0,) * 6 + (10.0,) * 1000
    race = run(Machine(slower=paces), seconds=60.0)
    assert len(race.repeats) == FEWEST_REPEATS
    assert len(run(Machine(slower=paces), seconds=60.0, repeats=2).repeats) == 2
    assert len(run(Machine(), seconds=1.0).repeats) == FEWEST_REPEATS


def test_texts_follow_the_machine_and_its_first_step_decides_nothing() -> None:
    def lengths(*paces: float) -> list[int]:
        race = run(Machine(slower=paces + (1.0,) * 1000), seconds=200.0, max_tokens=96)
        assert race.shown_tokens == max(len(lap.runs["plain"].ids) for lap in race.shown)
        return [len(lap.runs["plain"].ids) for lap in race.shown]

    assert lengths() == [96] * 4
    assert min(lengths(5.0)) > 80  # a slow first decoding is what the warm-up is for: only its own time is missed
    assert lengths(1.0, 1.0, 10.0) == [96, FEWEST_TOKENS, FEWEST_TOKENS, FEWEST_TOKENS]  # the time is gone
    hampered = lengths(1.0, 6.0)
    assert FEWEST_TOKENS <= hampered[0] < 96 == hampered[1]  # and it may recover


def test_fitting_length() -> None:
    cost = Cost(reading=0.5, a_token=0.2)
    assert cost.fitting(96, seconds=100.0, decodings=10) == 47
    assert cost.of_length(47) * 10 <= 100.0 < cost.of_length(48) * 10 + 1e-9
    assert cost.fitting(96, seconds=1.0, decodings=10) == FEWEST_TOKENS
    assert cost.fitting(8, seconds=0.0, decodings=10) == 8
    assert cost.fitting(96, seconds=1e9, decodings=10) == 96


def test_a_prompt_is_identical_only_if_every_decoding_of_it_was() -> None:
    machine = Machine()
    machine.wrong = {"a": 30, "b": 20}
    race = run(machine, seconds=1e6)
    pairs, overall = pairs_of(race)
    assert [(pair.equal, pair.total, pair.unexplained) for pair in pairs] == [(0, 1, 0), (0, 1, 1), (2, 2, 0)]
    assert (overall.equal, overall.total, overall.unexplained) == (2, 4, 1)


def test_a_difference_that_only_repeats_show_counts() -> None:
    machine = Machine()
    race = Race(TASKS, machine.decode, machine.judge, machine.clock, 1e6, 49)
    race.warm_up()
    for task in TASKS:
        race.show(task)
    race.set_length(1)
    machine.wrong = {"b": 20}
    race.repeat()
    overall = pairs_of(race)[1]
    assert (overall.equal, overall.unexplained) == (3, 1)


def test_the_same_difference_is_judged_once() -> None:
    machine = Machine()
    machine.wrong = {"b": 20}
    run(machine, seconds=1e6)
    # Warm-up, four texts and nothing more: repeats differ where the shown texts did, or not at all.
    assert machine.judged == 1 + len(TASKS)


def test_a_showing_counts_its_own_rounds() -> None:
    machine = Machine()
    race = run(machine, seconds=1e6)
    one = showing_of(race.shown[0], "Why?", lambda ids: "".join(chr(65 + token) for token in ids))
    assert (one.plain_tokens, one.spec_tokens, one.tau, len(one.rounds)) == (49, 49, 3.0, 16)
    assert (one.drafted, one.accepted) == (64, 32)
    assert "".join(span.text for span in one.spec_spans) == one.plain_text
    assert one.plain_tok_s == pytest.approx(49 / (PREFILL + 48 * 0.05))
    assert one.verdict.equal
