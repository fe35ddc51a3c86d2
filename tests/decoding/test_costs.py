"""Timing the core for the cost model: what is timed is what was asked for. No test reads a clock's figure."""

from __future__ import annotations

import pytest

from dspark.decoding import costs
from dspark.decoding.costs import Contexts, Setting, check_settings, fit_costs, settings_of, time_steps
from dspark.decoding.engine import BLOCK
from dspark.foundation.errors import UserError
from dspark.speculation.cost import Load
from tiny import tiny_drafter, tiny_target

CONTEXTS = Contexts(near=BLOCK, far=3 * BLOCK, most_far=2, room=40)


def test_every_kind_of_step_is_timed_at_the_load_that_was_asked_for() -> None:
    target = tiny_target(max_position_embeddings=1024)
    settings = [Setting(r, far, length) for r, far in ((1, 0), (3, 0), (3, 2)) for length in (None, 0, 2, 4)]
    settings += [Setting(3, 1, 1, 2), Setting(2, 0, 3, 3), Setting(3, 1, 1, 2, True), Setting(2, 0, None, None, True)]
    measured = time_steps(target, tiny_drafter(target), settings, CONTEXTS)
    assert len(measured) == len(settings)
    for setting, (load, seconds) in zip(settings, measured, strict=True):
        assert seconds > 0
        assert (load.requests, load.tokens) == (setting.requests, setting.requests * (1 + (setting.length or 0)))
        slots = 0 if setting.length is None else setting.slots or 4
        assert load.drafting == slots * setting.requests
        cached = setting.requests * CONTEXTS.near + setting.far * (CONTEXTS.far - CONTEXTS.near)
        assert cached <= load.context <= cached + setting.requests * CONTEXTS.room
        assert load.reads == (1 + (setting.length or 0)) * load.context
        assert load.reads_drafting == slots * load.context
        assert (load.laws, load.laws_drafting) == ((load.tokens, load.drafting) if setting.sampled else (0, 0))


def test_the_first_step_behind_another_kind_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where there is no other, since one takes so long."""
    before: list[Setting] = []

    def step(bench: costs._Bench, setting: Setting) -> tuple[float, Load]:
        seconds = (1e-3 if setting.requests == 1 else 1.0) * (1 if before[-1:] == [setting] else 5)
        before.append(setting)
        return seconds, Load(setting.requests, setting.requests)

    monkeypatch.setattr(costs._Bench, "step", step)
    target = tiny_target(max_position_embeddings=1024)
    settings = [Setting(1, 0, None), Setting(1, 0, 2), Setting(3, 0, 2)]
    measured = time_steps(target, tiny_drafter(target), settings, CONTEXTS)
    assert [seconds for _, seconds in measured] == [1e-3, 1e-3, 5.0]
    assert before.count(settings[-1]) == 1


def test_a_step_near_the_end_of_answers_is_not_what_was_asked_for() -> None:
    """Whatever the clock says, no step of fewer drafts is taken for one of more."""
    target = tiny_target(max_position_embeddings=1024)
    bench = costs._Bench(target, tiny_drafter(target), 3, CONTEXTS)
    asked = Setting(3, 0, 4)
    loads = [bench.step(asked)[1] for _ in range(3 * CONTEXTS.room)]
    assert {load.tokens for load in loads} == {15}
    assert len({load.context for load in loads}) > 3


def test_a_window_without_room_for_drafts_is_refused() -> None:
    target = tiny_target(max_position_embeddings=16)
    with pytest.raises(UserError, match="room for 8 positions, a context window of 16 leaves no more; expected 11"):
        time_steps(target, tiny_drafter(target), [Setting(1, 0, 4)], Contexts(near=4, far=4, most_far=0, room=8))


def test_contexts_are_pretended_and_requests_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads a single token of its prompt, be it the first time or when it begins anew."""
    seen: list[int] = []
    target = tiny_target(max_position_embeddings=1024)
    right = target.forward
    monkeypatch.setattr(target, "forward", lambda ids, *rest: (seen.append(len(ids)), right(ids, *rest))[1])
    bench = costs._Bench(target, tiny_drafter(target), 2, CONTEXTS)
    loads = [bench.step(Setting(2, 1, 0))[1] for _ in range(150)]
    assert seen[0] == 4 and max(seen[1:]) == 2 and len(seen) > 151, "somebody began anew"
    assert {load.requests for load in loads} == {2}
    contexts = [load.context for load in loads]
    assert min(contexts) >= 4 * BLOCK and max(contexts) <= 4 * BLOCK + 2 * CONTEXTS.room


def test_contexts_fit_the_cache_and_the_window() -> None:
    assert Contexts.of(1024, 8192, 64, 10**6) == Contexts(BLOCK, 1024, 64, 256)
    some = Contexts.of(1024, 8192, 64, 64 * 512 + 1408 * 5)
    assert some is not None and some.most_far == 5
    assert Contexts.of(1024, 8192, 64, 64 * 512 - 1) is None
    assert Contexts.of(100, 8192, 8, 10**6) == Contexts(100, 100, 0, 256)
    small = Contexts.of(1024, 256, 4, 10**6)
    assert small is not None and small.near + 1 + small.room <= 256 and small.most_far == 0


def test_the_grid_covers_what_is_asked() -> None:
    grid = settings_of(7, 20, CONTEXTS)
    assert {each.requests for each in grid} == {1, 2, 4, 8, 9, 16, 17, 20}
    assert {each.length for each in grid if each.requests == 1} == {None, *range(8)}
    assert max(each.requests * (1 + (each.length or 0)) for each in grid) == 160
    assert {each.far for each in grid} == {0, 1, 2}
    assert {each.requests for each in grid if each.sampled} == {1, 4, 16}
    assert {each.length for each in settings_of(2, 4, CONTEXTS)} == {None, 0, 1, 2}
    for each in check_settings(7, 20, CONTEXTS, 50):
        assert 1 <= each.requests <= 20 and 0 <= each.far <= min(2, each.requests) and (each.length or 0) <= 7


def test_the_model_of_a_measurement_foretells_it() -> None:
    def truth(load: Load) -> float:
        return (
            5e-3
            + 3e-4 * load.tokens
            + 2e-7 * load.context
            + 1e-7 * load.reads
            + (2e-3 + 5e-4 * load.drafting) * bool(load.drafting)
        )

    loads = [
        Load(r * (1 + n), r, r * context, r * (1 + n) * context, drafting * r, drafting * r * 7 * context)
        for r in (1, 2, 4, 8)
        for n in (0, 1, 3, 7)
        for context in (64, 512)
        for drafting in (0, 1)
    ]
    model = fit_costs([(load, truth(load)) for load in loads])
    assert max(abs(model.seconds(load) / truth(load) - 1) for load in loads) < 1e-6
    assert model.drafts == (1, 2, 4, 8) and model.tokens[-1] == 64


def test_steps_of_fixed_sizes_cost_what_the_next_size_does() -> None:
    sizes = (1, 2, 4, 8, 16)

    def truth(load: Load) -> float:
        size = next((size for size in sizes if size >= load.tokens), load.tokens)
        return 4e-3 + 1e-3 * size

    loads = [Load(tokens, 1) for tokens in (1, 2, 3, 5, 6, 9, 16, 24, 32)]
    model = fit_costs([(load, truth(load)) for load in loads], sizes)
    assert model.padded == sizes and model.tokens == (1, 2, 4, 8, 16, 24, 32)
    for tokens in (1, 3, 4, 7, 11, 13, 28):
        assert model.seconds(Load(tokens, 1)) == pytest.approx(truth(Load(tokens, 1)))
    unpadded = fit_costs([(load, truth(load)) for load in loads])
    assert unpadded.seconds(Load(7, 1)) > 1.1 * truth(Load(7, 1)), "control: the stair is seen"
