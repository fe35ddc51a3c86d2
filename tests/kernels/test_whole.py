"""Products with whole-number sums: rows rounded to 16 bits in groups of 32, and nothing else that fp32 would not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels import whole
from dspark.kernels.program import Program, Rooms
from dspark.kernels.whole import Wholes, can_count, column
from dspark.nn.forms import in_blocks, rounded_to_bytes
from dspark.nn.packed import PanelLinear
from dspark.nn.panels import Panels

needs_units = pytest.mark.skipif(not can_count(), reason="this CPU multiplies no 8-bit numbers (VNNI)")
pytestmark = needs_units


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nibbles(outputs: int, width: int, seed: int = 0, offset: bool = True) -> Tensor:
    """A weight as GGUF holds it: Q4_1's ``d * q + m`` where there are offsets of their own, else Q4_0's."""
    counts = torch.randint(0, 16, (outputs, width // 32, 32), generator=torch.Generator().manual_seed(seed)).float()
    counts[..., 3], counts[..., 17] = 0, 15
    scale, least = (random(outputs, width // 32, 1, seed=seed + n).half().float() for n in (1, 2))
    return (counts * scale.abs() + least if offset else (counts - 8) * scale).flatten(1)


def bytes_of(outputs: int, width: int, seed: int = 0) -> Tensor:
    return rounded_to_bytes(random(outputs, width, seed=seed))


FORMS: dict[str, Callable[[int, int], Tensor]] = {
    "Q4_1": nibbles,
    "Q4_0": lambda outputs, width: nibbles(outputs, width, offset=False),
    "Q8_0": bytes_of,
}


def product_of(weight: Tensor, bias: Tensor | None = None) -> PanelLinear:
    product = PanelLinear(weight, bias)
    form = product.panels.name
    product.round(torch.int16)
    assert isinstance(product.panels, Wholes) and product.panels.name == form and product.rounds == torch.int16
    return product


def rounded(x: Tensor) -> Tensor:
    """Rows as they are multiplied, in float64."""
    groups = x.unflatten(1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    most = torch.full_like(largest, 127 * 256)  # PyTorch divides a number by a tensor less exactly
    return ((groups * (most / largest)).round().double() * (largest / most).double()).flatten(1)


@pytest.mark.parametrize("form", FORMS)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 17, 33, 515]),
    outputs=st.sampled_from([1, 16, 33, 64, 70, 130]),
    groups=st.integers(1, 7),
    bias=st.booleans(),
)
def test_rows_are_rounded_and_nothing_else(form: str, rows: int, outputs: int, groups: int, bias: bool) -> None:
    width = 32 * groups
    x, weight, added = random(rows, width, seed=7), FORMS[form](outputs, width), random(outputs, seed=8)
    found = product_of(weight, added if bias else None)(x)
    assert found.shape == (rows, outputs) and found.dtype == torch.float32
    expected = rounded(x) @ weight.double().T + (added if bias else 0.0)
    size = x.double().abs() @ weight.double().abs().T + 1.0
    assert not rows or ((found - expected).abs() / size).max() < 1e-6
    # The promise of the documentation: half of one part in 32,512 of the largest input of each group.
    groups_TGK, weights_OGK = x.double().unflatten(1, (-1, 32)), weight.double().unflatten(1, (-1, 32))
    bound = groups_TGK.abs().amax(-1) @ weights_OGK.abs().sum(-1).T / (2 * 127 * 256)
    exact = x.double() @ weight.double().T + (added if bias else 0.0)
    assert ((found - exact).abs() <= bound + 1e-6 * size).all()


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_rounded_at_all(form: str) -> None:
    """As a control of the test before: unrounded rows are another result, coarser ones one that is farther away."""
    x, weight = random(40, 96, seed=7), FORMS[form](64, 96)
    found, exact = product_of(weight)(x).double(), x.double() @ weight.double().T
    assert (found - exact).abs().max() > 1e-5
    assert 50 * (found - exact).abs().max() < (x.bfloat16().double() @ weight.double().T - exact).abs().max()


@pytest.mark.parametrize("form", FORMS)
@given(rows=st.integers(1, 100), first=st.integers(0, 99), outputs=st.sampled_from([32, 96, 130]))
def test_a_row_is_the_same_to_the_bit_in_any_company(form: str, rows: int, first: int, outputs: int) -> None:
    x, product = random(100, 96), product_of(FORMS[form](outputs, 96))
    first = min(first, 100 - rows)
    assert torch.equal(product(x)[first : first + rows], product(x[first : first + rows]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 20])
def test_registers_of_half_the_size_give_the_same_bits(form: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs without AVX-512 (AVX_VNNI)."""
    x, weight, bias = random(rows, 160, seed=3), FORMS[form](70, 160), random(70, seed=4)
    expected = product_of(weight, bias)(x)
    monkeypatch.setattr(whole, "column", lambda: 8 if column() == 16 else 16)
    if column() == 16:
        assert torch.equal(product_of(weight, bias)(x), expected)


@pytest.mark.parametrize("form", FORMS)
def test_broken_neighbours_change_no_bit(form: str) -> None:
    x, product = random(20, 64), product_of(FORMS[form](64, 64))
    broken = x.clone()
    broken[1:, ::3] = float("nan")
    broken[5:, ::2] = float("inf")
    broken[9:] = 1e-40
    found = product(broken)
    assert torch.equal(found[0], product(x)[0])
    assert not found[1:9].isfinite().any(), "what is no number must not look like one"
    assert (found[9:].abs() < 1e-35).all()


def test_one_input_that_is_no_number_spoils_its_row_alone() -> None:
    x, product = random(9, 96), product_of(bytes_of(64, 96))
    for value in (float("nan"), float("inf"), -float("inf")):
        x[4, 50] = value
        found = product(x)
        assert not found[4].isfinite().any() and found[[*range(4), *range(5, 9)]].isfinite().all()


def test_rows_of_zeros_and_of_the_largest_numbers_are_exact() -> None:
    weight = torch.full((32, 64), 127.0)
    weight[::2] = -127.0
    product = product_of(weight)
    assert not product(torch.zeros(3, 64)).any()
    for value in (1.0, -1.0, 3e30):
        found = product(torch.full((5, 64), value))
        expected = value * weight.sum(dim=1).expand(5, -1)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 3, 8, 17, 60])
@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_a_program_adds_what_the_module_adds_afterwards(form: str, rows: int) -> None:
    x, bias, more = random(rows, 64), random(64, seed=2), random(rows, 64, seed=3)
    product = product_of(FORMS[form](64, 64), bias)
    expected, wholes = product(x) + more, product.panels
    assert isinstance(wholes, Wholes)
    scratch = wholes.scratch(rows)
    Program([wholes.call(x, more, more, scratch)]).run()
    assert torch.equal(more, expected)


@pytest.mark.parametrize("form", FORMS)
def test_programs_share_the_room_for_whole_numbers(form: str) -> None:
    first, second = product_of(FORMS[form](64, 96)), product_of(FORMS[form](96, 64))
    rows, rooms = 20, Rooms()
    rooms.too_small(rows)
    x, between, out = random(rows, 96), torch.zeros(rows, 64), torch.zeros(rows, 96)
    calls = [first.panels.shared_call(rooms, x, between, None), second.panels.shared_call(rooms, between, out, None)]
    Program(calls).run()
    assert torch.equal(out, second(first(x)))


def test_a_weight_in_no_blocks_stays_exact() -> None:
    weight, x = random(48, 64), random(40, 64, seed=1)
    assert in_blocks(bytes_of(48, 64)) and in_blocks(nibbles(48, 64)) and not in_blocks(weight)
    told = PanelLinear(weight, None)
    told.round(torch.int16)
    assert isinstance(told.panels, Panels) and told.rounds is None
    assert torch.equal(told(x), PanelLinear(weight, None)(x))


def test_rows_may_be_of_any_floating_dtype() -> None:
    x, product = random(40, 64).bfloat16(), product_of(bytes_of(48, 64))
    assert torch.equal(product(x), product(x.float()))
    assert torch.equal(product(x.double()), product(x.float()))
