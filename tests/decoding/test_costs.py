"""Timing the core for the cost model: what is timed is what was asked for. No test reads a clock's figure."""

from __future__ import annotations

import itertools

import pytest

from dspark.decoding import costs
from dspark.decoding.costs import Setting, check_settings, fit_costs, settings_of, time_steps
from dspark.speculation.cost import Load
from tiny import tiny_drafter, tiny_target


def test_every_kind_of_step_is_timed_at_the_load_that_was_asked_for() -> None:
    target = tiny_target(max_position_embeddings=1024)
    drafter = tiny_drafter(target)
    measured = time_steps(target, drafter, [Setting(3, 300, (0, 2, 4))])
    assert len(measured) == costs._REPEATS * 4 and all(seconds > 0 for _, seconds in measured)
    for (load, _), length in zip(measured, itertools.cycle((None, 0, 2, 4)), strict=False):
        assert (load.requests, load.tokens) == (3, 3 * (1 + (length or 0)))
        assert load.drafting == (0 if length is None else 3)
        assert 300 <= load.reads / load.tokens <= 300 + 5 * 17
        assert load.reads_drafting == (0 if length is None else 3 * 4 * load.reads / load.tokens)


def test_contexts_are_pretended_in_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    target = tiny_target(max_position_embeddings=1024)
    right = target.forward
    monkeypatch.setattr(target, "forward", lambda ids, *rest: (seen.append(len(ids)), right(ids, *rest))[1])
    time_steps(target, tiny_drafter(target), [Setting(2, 300, (0,))])
    assert seen[0] == 2 * (300 - 256) and max(seen[1:]) == 2


def test_a_context_that_ends_ends_the_measurement() -> None:
    target = tiny_target()
    measured = time_steps(target, tiny_drafter(target), [Setting(2, 250, (4,))])
    assert len(measured) < costs._REPEATS * 2


def test_the_grid_covers_what_is_asked_and_fits() -> None:
    grid = settings_of(7, 20, (64, 256), lambda positions: positions < 10_000)
    assert {(each.requests, each.context) for each in grid} == {*itertools.product((1, 2, 4, 8), (64, 256)), (16, 64)}
    assert all(each.lengths == (0, 1, 2, 3, 5, 7) for each in grid)
    assert settings_of(2, 1, (64,), lambda positions: True) == [Setting(1, 64, (0, 1, 2))]
    for each in check_settings(7, 20, 256, 50):
        assert 1 <= each.requests <= 20 and 64 <= each.context <= 256 and max(each.lengths) <= 7


def test_the_model_of_a_measurement_foretells_it() -> None:
    def truth(load: Load) -> float:
        return 5e-3 + 3e-4 * load.tokens + 1e-7 * load.reads + (2e-3 + 5e-4 * load.drafting) * bool(load.drafting)

    loads = [
        Load(r * (1 + n), r, r * (1 + n) * context, drafting * r, drafting * r * 7 * context)
        for r in (1, 2, 4, 8)
        for n in (0, 1, 3, 7)
        for context in (64, 512)
        for drafting in (0, 1)
    ]
    model = fit_costs([(load, truth(load)) for load in loads])
    assert max(abs(model.seconds(load) / truth(load) - 1) for load in loads) < 1e-6
    assert model.requests == (1, 2, 4, 8) and model.tokens[-1] == 64
