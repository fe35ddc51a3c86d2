"""Laws of rows and draws from them, compiled: against their definitions, and each row for itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels.law import can_make_law, invert_law, law, masses
from dspark.kernels.machine import can_compile

pytestmark = pytest.mark.skipif(not can_compile(), reason="no kernels on this machine")
WIDTHS = st.sampled_from([32, 64, 96, 320])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Few values, so that ties are common, or many; some of them masked."""
    width, seed = draw(WIDTHS), draw(st.integers(0, 10**6))
    logits = random(draw(st.integers(1, 4)), width, seed=seed) * draw(st.sampled_from([0.0, 0.1, 1.0, 8.0]))
    if draw(st.booleans()):
        logits = logits.round(decimals=draw(st.integers(0, 1)))
    hidden = random(*logits.shape, seed=seed + 1) > draw(st.sampled_from([-2.0, 0.0, 9.0]))
    hidden[:, draw(st.integers(0, width - 1))] = False
    return logits.masked_fill(hidden, -math.inf)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """The definition: by sorting, summed exactly; everything where rounding keeps a row below ``top_p``."""
    kept, mass = torch.zeros_like(p, dtype=torch.bool), []
    for i in sorted(range(len(p)), key=lambda i: (-p[i].item(), i)):
        kept[i] = True
        mass.append(p[i].item())
        if math.fsum(mass) >= top_p:
            break
    return kept


@given(logits=rows())
def test_masses_are_the_reciprocals_of_the_largest_probabilities(logits: Tensor) -> None:
    found = masses(logits)
    torch.testing.assert_close(found.double(), 1 / logits.double().softmax(-1).amax(-1), rtol=2e-6, atol=0.0)
    assert all(torch.equal(masses(row[None].contiguous())[0], one) for row, one in zip(logits, found, strict=True))


@given(logits=rows(), temperature=st.sampled_from([1e-5, 0.2, 1.0, 3.0]))
def test_a_law_is_the_softmax(logits: Tensor, temperature: float) -> None:
    found = law(logits, temperature)
    expected = (logits.double() / temperature).softmax(-1)
    small = expected < 1e-37  # no normal number of fp32, or next to none
    assert bool((found[small] <= 2e-37).all())
    torch.testing.assert_close(found.double()[~small], expected[~small], rtol=4e-5, atol=0)
    torch.testing.assert_close(found.double().sum(-1), torch.ones(len(logits)).double(), rtol=1e-6, atol=0)


@given(logits=rows(), top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.75, 0.9, 0.999, 0.9999, 1 - 1e-9]))
def test_a_nucleus_is_the_smallest_prefix_that_reaches_its_mass(logits: Tensor, top_p: float) -> None:
    whole, cut = law(logits, 1.0), law(logits, 1.0, top_p)
    for p, found in zip(whole, cut, strict=True):
        kept = nucleus(p, top_p) & (p > 0)
        assert torch.equal(found > 0, kept)
        torch.testing.assert_close(found[kept], p[kept] / p[kept].sum(), rtol=1e-5, atol=0)


def test_of_equals_the_lowest_ids_stay() -> None:
    cut = law(torch.zeros(1, 320), 1.0, 0.5)
    assert bool((cut[0, :160] > 0).all()) and not bool(cut[0, 160:].any())


def test_a_nucleus_as_wide_as_a_vocabulary() -> None:
    logits = random(3, 49_152) * torch.tensor([[0.1], [2.0], [9.0]])
    for top_p in (0.3, 0.95):
        p, cut = law(logits, 1.0).double(), law(logits, 1.0, top_p)
        for row, found in zip(p, cut, strict=True):
            ordered = row.sort(descending=True).values.cumsum(0)
            assert abs(int((found > 0).sum()) - int((ordered < top_p).sum()) - 1) <= 1


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_company_changes_no_bit(top_p: float) -> None:
    logits = random(40, 4096) * 3
    whole = law(logits, 0.7, top_p)
    assert all(torch.equal(whole[i : i + 1], law(logits[i : i + 1].clone(), 0.7, top_p)) for i in (0, 7, 39))
    u = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = invert_law(whole, u)[0]
    assert all(torch.equal(ids[i : i + 1], invert_law(whole[i : i + 1].clone(), u[i : i + 1])[0]) for i in (0, 7, 39))


@given(logits=rows(), u=st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_inverse_of_the_cumulative_sum(logits: Tensor, u: float) -> None:
    p = law(logits, 1.0)
    ids, mass = invert_law(p, torch.full((len(p),), u, dtype=torch.float64))
    for row, index, total in zip(p.double().tolist(), ids.tolist(), mass.tolist(), strict=True):
        assert row[index] > 0 and total == pytest.approx(math.fsum(row), rel=1e-12)
        assert math.fsum(row[:index]) <= u * total + 1e-12
        assert math.fsum(row[: index + 1]) > u * total - 1e-12


def test_an_edge_belongs_to_the_index_above_and_the_end_to_the_last_that_is_possible() -> None:
    p = torch.zeros(3, 64)
    p[:, 5], p[:, 40] = 0.25, 0.75
    u = torch.tensor([0.25, math.nextafter(0.25, 0), math.nextafter(1, 0)], dtype=torch.float64)
    assert invert_law(p, u)[0].tolist() == [40, 5, 40]


def test_broken_rows_are_broken_all_over_and_alone() -> None:
    logits = random(3, 64)
    logits[1, 3], logits[2] = math.nan, -math.inf
    for top_p in (1.0, 0.5):
        found = law(logits, 1.0, top_p)
        assert torch.equal(found.isnan().all(-1), torch.tensor([False, True, True]))
        assert torch.equal(found[:1], law(logits[:1].clone(), 1.0, top_p))
        assert invert_law(found, torch.full((3,), 0.5, dtype=torch.float64))[1].isnan().tolist() == [False, True, True]


def test_rows_of_other_kinds_are_left_to_others() -> None:
    assert can_make_law(torch.zeros(2, 64))
    for other in (torch.zeros(2, 40), torch.zeros(2, 64).double(), torch.zeros(64, 64).T, torch.zeros(0, 64)):
        assert not can_make_law(other)
