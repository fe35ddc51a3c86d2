"""The source of randomness: keys, uniformity, and the inverse CDF."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dspark.speculation.draws import CertainDraws, Purpose, SeededDraws, invert, invert_rows

WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)
UNIFORM = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, 1 - 2**-53])


def probabilities(weights: list[int], dtype: torch.dtype) -> torch.Tensor:
    w = torch.tensor(weights, dtype=dtype)
    return w / w.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(weights=WEIGHTS, u=UNIFORM)
def test_invert_is_the_inverse_of_the_cumulative_sum(dtype: torch.dtype, weights: list[int], u: float) -> None:
    p = probabilities(weights, dtype)
    token = invert(p, u)
    assert p[token] > 0
    edges = [0.0, *accumulate(p.double().tolist())]
    assert edges[token] <= u * edges[-1] <= edges[token + 1]


@given(rows=st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=7, max_size=7).filter(any), UNIFORM), min_size=1))
def test_rows_invert_as_one_by_one(rows: list[tuple[list[int], float]]) -> None:
    p = torch.stack([probabilities(weights, torch.float32) for weights, _ in rows])
    u = torch.tensor([u for _, u in rows], dtype=torch.float64)
    assert invert_rows(p, u).tolist() == [invert(row, float(v)) for row, v in zip(p, u, strict=True)]


def test_an_edge_belongs_to_the_token_above_it() -> None:
    p = torch.tensor([0.0, 0.25, 0.25, 0.0, 0.5])
    assert [invert(p, u) for u in (0.0, 0.25, 0.5, 0.75)] == [1, 2, 4, 4]


def test_a_uniform_at_the_very_end_never_picks_a_padded_zero() -> None:
    for weights in ([1, 2, 0, 0], [1, 1, 1, 0], [7, 0, 3, 0]):
        assert weights[invert(probabilities(weights, torch.float32), 1 - 2**-53)] > 0


@pytest.mark.parametrize("p", [[0.5, 0.4], [0.9, 0.3], [float("nan"), 1.0]])
def test_what_is_no_distribution_is_refused(p: list[float]) -> None:
    with pytest.raises(ArithmeticError, match="expected 1"):
        invert(torch.tensor(p), 0.5)


def keyed(draws: SeededDraws, rounds: int = 40) -> list[float]:
    keys = [(r, s, purpose) for r in range(rounds) for s in range(8) for purpose in Purpose]
    return [draws.uniform(round=r, slot=s, purpose=purpose) for r, s, purpose in keys]


def test_every_key_has_its_own_uniform_in_any_order() -> None:
    first = keyed(SeededDraws(1))
    assert len(set(first)) == len(first)  # rounds, slots and purposes never share noise
    assert not set(first) & set(keyed(SeededDraws(2)))
    again = SeededDraws(1)
    assert again.uniform(round=39, slot=7, purpose=Purpose.RESIDUAL) == first[-1]
    assert again.uniform(round=0, slot=0, purpose=Purpose.DRAFT) == first[0]


def test_uniforms_are_uniform() -> None:
    sample = torch.tensor(keyed(SeededDraws(3), rounds=400), dtype=torch.float64)
    counts = torch.histc(sample, bins=16, min=0, max=1)
    expected = len(sample) / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7  # chi-square, df 15, alpha .001
    assert float((sample[1:] - 0.5).mul(sample[:-1] - 0.5).mean().abs()) < 4 / 12 / len(sample) ** 0.5


def test_draws_follow_their_probabilities() -> None:
    draws = SeededDraws(4)
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    n = 4000
    tokens = [draws.categorical(p, round=r, slot=0, purpose=Purpose.DRAFT) for r in range(n)]
    share = torch.bincount(torch.tensor(tokens), minlength=4) / n
    assert share[1] == 0
    assert float((share - p).abs().max()) < 4 * (0.25 / n) ** 0.5
    accepted = sum(draws.bernoulli(0.25, round=r, slot=0, purpose=Purpose.ACCEPT) for r in range(n))
    assert abs(accepted / n - 0.25) < 4 * (0.25 / n) ** 0.5
    assert draws.bernoulli(1.0, round=0, slot=0, purpose=Purpose.ACCEPT)
    assert not draws.bernoulli(0.0, round=0, slot=0, purpose=Purpose.ACCEPT)


def test_certain_outcomes_are_those_that_any_number_would_give_and_nothing_else_passes() -> None:
    key = {"round": 1, "slot": 0, "purpose": Purpose.RESIDUAL}
    one_hot, shared = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 0.5, 0.5, 0.0])
    for source in (CertainDraws(), *map(SeededDraws, range(5))):
        assert source.categorical(one_hot, **key) == 2
        assert source.bernoulli(1.0, **key) and not source.bernoulli(torch.tensor(0.0), **key)
    with pytest.raises(ArithmeticError, match="expected 1"):
        CertainDraws().categorical(shared, **key)
    with pytest.raises(ArithmeticError, match="expected 0 or 1"):
        CertainDraws().bernoulli(0.999, **key)
