"""`distribution` against its definition by sorting, ties and extremes included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.speculation.sampling import Sampling, distribution, greedy_ids

# A coarse grid makes ties common; the free floats make them rare.
ROWS = st.one_of(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40),
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 0.7, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 39, 1000]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.999]),
)


def by_sorting(row: Tensor, sampling: Sampling) -> Tensor:
    """The definition, one row, by sorting the whole vocabulary."""
    ids = range(len(row))
    if sampling.temperature == 0:
        return torch.eye(len(row), dtype=row.dtype)[min(ids, key=lambda i: (-row[i].item(), i))]
    z = (row - row.max()) / sampling.temperature
    if sampling.top_k:
        kept = sorted(ids, key=lambda i: (-z[i].item(), i))[: sampling.top_k]
        z = torch.full_like(z, -math.inf).index_copy(0, torch.tensor(kept), z[kept])
    p = z.softmax(0)
    if sampling.top_p < 1:
        p = nucleus_of(p, sampling.top_p)
    p = torch.where(p >= sampling.min_p * p.max(), p, 0.0)
    return p / p.sum()


def nucleus_of(p: Tensor, top_p: float) -> Tensor:
    nucleus, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: (-p[i].item(), i)):
        nucleus.append(i)
        mass += p[i].item()
        if mass >= top_p:
            break
    return torch.zeros_like(p).index_copy(0, torch.tensor(nucleus), p[nucleus])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(rows=st.lists(ROWS, min_size=1, max_size=3), sampling=SAMPLINGS)
def test_distribution_is_its_definition(dtype: torch.dtype, rows: list[list[float]], sampling: Sampling) -> None:
    width = max(map(len, rows))
    logits = torch.tensor([(row * width)[:width] for row in rows], dtype=dtype)
    p = distribution(logits, sampling)
    assert p.dtype == dtype
    for row, got in zip(logits, p, strict=True):
        expected = by_sorting(row, sampling)
        assert torch.equal(got > 0, expected > 0)
        assert torch.allclose(got, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
    assert torch.allclose(p.sum(-1), torch.ones(len(rows), dtype=dtype), atol=1e-6)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
def test_a_wide_nucleus_is_found_row_by_row(top_p: float) -> None:
    # Flat, peaked, tied and ordinary rows end their nuclei at very different widths.
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.stack([noise * 0.1, noise * 20, torch.zeros(3000), noise * 2])
    p = distribution(logits, Sampling(1.0, top_p=top_p))
    for row, got in zip(logits, p, strict=True):
        assert torch.equal(got > 0, by_sorting(row, Sampling(1.0, top_p=top_p)) > 0)


def test_bfloat16_logits_are_computed_in_single_precision() -> None:
    logits = torch.linspace(-2, 2, 24).reshape(2, 3, 4).bfloat16()
    p = distribution(logits, Sampling(0.7, top_k=3))
    assert p.shape == (2, 3, 4)
    assert p.dtype == torch.float32
    assert torch.equal(p, distribution(logits.float(), Sampling(0.7, top_k=3)))


@given(row=ROWS)
def test_greedy_is_the_lowest_id_of_the_maximum(row: list[float]) -> None:
    assert int(greedy_ids(torch.tensor(row))) == min(range(len(row)), key=lambda i: (-row[i], i))


@pytest.mark.parametrize("width", [127, 128, 256, 1280, 128 * 300])
def test_greedy_over_a_wide_vocabulary_finds_the_first_of_equals(width: int) -> None:
    logits = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width)).round(decimals=1)
    expected = [[row.index(max(row)) for row in rows] for rows in logits.tolist()]
    assert greedy_ids(logits).tolist() == expected
    logits[2, 1, 0] = -math.inf
    greedy_ids(logits)
    for number in (math.nan, math.inf):
        logits[2, 1, -1] = number
        with pytest.raises(ArithmeticError, match="NaN or infinity"):
            greedy_ids(logits)
    logits[2, 1] = -math.inf
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        greedy_ids(logits)


def test_masked_logits_have_no_probability() -> None:
    logits = torch.tensor([-math.inf, 1.0, -math.inf, 1.0])
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.99)):
        assert distribution(logits, sampling).tolist() == [0, 0.5, 0, 0.5]


def test_broken_logits_are_not_sampled_from() -> None:
    with pytest.raises(ArithmeticError, match="NaN"):
        distribution(torch.tensor([0.0, math.nan]), Sampling())


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": 1e-9},
        {"temperature": 1e7},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1},
        {"min_p": math.nan},
    ],
    ids=str,
)
def test_settings_outside_the_domain_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]
