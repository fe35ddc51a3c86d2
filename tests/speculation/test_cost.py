"""The cost model: what it may say at all, and that a fit finds what was there."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.foundation.errors import UserError
from dspark.speculation.cost import CostModel, Load, not_negative

TOKENS, REQUESTS = (1, 8, 16, 64, 256), (1, 8, 64)
TRUE = CostModel(TOKENS, REQUESTS, (8e-3, 1e-3, 3e-3, 2e-2, 9e-2, 5e-5, 4e-7, 2e-7, 3e-5, 2e-3, 4e-3, 3e-2, 1e-7, 2e-5))
GRID = [
    Load(r * (1 + n), r, r * context, r * (1 + n) * context, drafting, drafting * 7 * context, *laws)
    for r, n, context in itertools.product((1, 2, 4, 8, 16, 32, 64), (0, 1, 3, 7), (64, 256, 1024))
    for drafting in {0, r}
    for laws in ((0, 0), (r * (1 + n), drafting))
]
loads = st.builds(
    Load,
    st.integers(1, 600),
    st.integers(0, 80),
    st.integers(0, 10**5),
    st.integers(0, 10**6),
    st.integers(0, 80),
    st.integers(0, 10**6),
    st.integers(0, 600),
    st.integers(0, 80),
)
WORK = ["tokens", "requests", "context", "reads", "drafting", "reads_drafting", "laws", "laws_drafting"]
weights = st.lists(st.floats(0, 1), min_size=14, max_size=14).map(tuple)


def off(model: CostModel, truth: CostModel) -> list[float]:
    return [abs(model.seconds(load) / truth.seconds(load) - 1) for load in GRID]


def test_a_fit_finds_what_was_there() -> None:
    model = CostModel.fit([(load, TRUE.seconds(load)) for load in GRID], TOKENS, REQUESTS)
    assert model.weights == pytest.approx(TRUE.weights, rel=1e-6)


def test_a_fit_through_noise_is_nearer_than_the_noise() -> None:
    noise = np.random.default_rng(0)
    measured = [(load, TRUE.seconds(load) * noise.lognormal(0, 0.1)) for load in GRID * 3]
    assert np.median(off(CostModel.fit(measured, TOKENS, REQUESTS), TRUE)) < 0.03


@given(weights, loads, st.sampled_from(WORK))
def test_more_work_never_takes_less_time(weights: tuple[float, ...], load: Load, more: str) -> None:
    for padded in ((), (8, 64, 512)):
        model = CostModel(TOKENS, REQUESTS, weights, padded)
        assert model.seconds(load._replace(**{more: getattr(load, more) + 1})) >= model.seconds(load) - 1e-9


def test_a_measurement_that_falls_is_fitted_by_one_that_does_not() -> None:
    """As a busy moment makes it look."""
    seconds = {1: 0.010, 8: 0.030, 16: 0.014, 64: 0.040, 256: 0.1}
    model = CostModel.fit([(Load(n, 1), s) for n, s in seconds.items()], TOKENS, REQUESTS)
    found = [model.seconds(Load(n, 1)) for n in seconds]
    assert found == sorted(found) and found[0] < found[-1]


@given(loads, st.integers(0, 40), st.sampled_from([(), (8, 64, 512)]))
def test_rounds_are_steps_of_more_tokens(load: Load, drafts: int, padded: tuple[int, ...]) -> None:
    model = replace(TRUE, padded=padded)
    seconds = model.rounds(load, drafts)
    each = (TRUE.weights[7] * load.reads + TRUE.weights[8] * load.laws) / load.tokens
    for n in {0, drafts // 2, drafts}:
        grown = load._replace(tokens=load.tokens + n)
        expected = model.seconds(grown) + n * each
        assert seconds[n] == pytest.approx(expected, rel=1e-9)


@given(weights, loads, st.sampled_from([(), (8, 64, 512)]))
def test_a_load_by_itself_costs_what_it_does_among_others(
    weights: tuple[float, ...], load: Load, padded: tuple[int, ...]
) -> None:
    """To the bit: one, and a few, are worked out number by number, many as arrays."""
    model = CostModel(TOKENS, REQUESTS, weights, padded)
    few, many = (model.rounds(load, drafts) for drafts in (20, 40))
    assert model.seconds(load) == few[0] == many[0]
    assert few.tolist() == many[:21].tolist()


def test_captured_sizes_are_a_staircase() -> None:
    seconds = replace(TRUE, padded=(8, 16)).rounds(Load(3, 3), 15)
    assert len(set(seconds[:6])) == 1 and len(set(seconds[6:14])) == 1
    assert seconds[5] < seconds[6] < seconds[14] < seconds[15], "beyond the largest, a step takes what it takes"


def test_the_last_step_of_a_curve_goes_on() -> None:
    a, b, c = (TRUE.seconds(Load(n, 1)) for n in (64, 256, 448))
    assert c - b == pytest.approx(b - a)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_steps_that_are_real_move_the_model_to_another_machine(factor: float) -> None:
    order = np.random.default_rng(1)
    model = TRUE
    for index in order.integers(0, len(GRID), 600):
        model = model.refined([(GRID[index], TRUE.seconds(GRID[index]) * factor)])
    wrong = [abs(model.seconds(load) / TRUE.seconds(load) / factor - 1) for load in GRID]
    assert np.median(wrong) < 0.05
    several = TRUE
    for some in order.integers(0, len(GRID), (60, 16)):
        several = several.refined([(GRID[index], TRUE.seconds(GRID[index]) * factor) for index in some])
    assert np.median([abs(several.seconds(load) / TRUE.seconds(load) / factor - 1) for load in GRID]) < 0.05
    assert max(off(TRUE.refined([(GRID[0], 1e9)]), TRUE)) < 0.06, "one absurd step hardly moves it"


def test_a_machine_that_is_slower_is_so_in_all_parts() -> None:
    """What decides is how the parts compare, so it stays what it was, whichever steps there are to learn from."""
    model = TRUE
    for _ in range(8):
        model = model.refined([(load, 2.5 * TRUE.seconds(load)) for load in GRID[:16]])
    ratios = [now / before for now, before in zip(model.weights, TRUE.weights, strict=True) if before]
    assert max(ratios) == pytest.approx(min(ratios)) and 2.3 < ratios[0] < 2.6


def test_what_a_model_saves_it_is_again(tmp_path: Path) -> None:
    TRUE.save(tmp_path / "cost.json")
    assert CostModel.of(json.loads((tmp_path / "cost.json").read_text()), "cost.json") == TRUE


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"cost.json holds \['tokens'\].*profile again"):
        CostModel.of({"tokens": [1]}, "cost.json")
    with pytest.raises(UserError, match="rising whole numbers from 1 on"):
        CostModel((2, 1), (1,), (0.0,) * 9)
    with pytest.raises(UserError, match="none below zero"):
        CostModel((1, 2), (1,), (0.0, -1.0) + (0.0,) * 7)
    with pytest.raises(UserError, match="positive seconds"):
        CostModel.fit([(Load(1, 1), 0.0)], (1,), (1,))
    with pytest.raises(UserError, match="no steps"):
        CostModel.fit([], (1,), (1,))


@given(st.integers(0, 10**6))
def test_least_squares_without_negative_numbers_is_the_best_of_all_supports(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    a, b = numbers.normal(size=(7, 4)), numbers.normal(size=7)
    x = not_negative(a, b)
    best = float(np.linalg.norm(b))
    for size in range(1, 5):
        for support in itertools.combinations(range(4), size):
            some = np.linalg.lstsq(a[:, support], b, rcond=None)[0]
            if (some >= 0).all():
                best = min(best, float(np.linalg.norm(a[:, support] @ some - b)))
    assert (x >= 0).all() and np.linalg.norm(a @ x - b) == pytest.approx(best, rel=1e-9, abs=1e-12)
