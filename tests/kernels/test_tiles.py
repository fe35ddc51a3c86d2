"""Products in bf16, on matrix units and with dot products: bf16 factors, sums as exact as fp32 has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels import tiles
from dspark.kernels.blocks import can_unpack
from dspark.kernels.dots import has_dots
from dspark.kernels.matrix import has_units
from dspark.kernels.program import Program, Rooms
from dspark.kernels.tiles import Tiles, can_tile, fits
from dspark.nn.forms import rounded_to_bytes
from dspark.nn.packed import PanelLinear
from dspark.nn.panels import Panels

needs_bf16 = pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")


@pytest.fixture(params=["units", "dots"], autouse=True, scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to multiply, where the CPU has them: units are taken before dot products."""
    if request.param == "units" and can_tile() and not has_units():
        pytest.skip("this CPU has no matrix units (AMX)")
    if request.param == "dots" and can_tile() and not has_dots():
        pytest.skip("this CPU has no dot products of bf16 (AVX512_BF16)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "has_units", lambda: request.param == "units")
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rounded(x: Tensor, weight: Tensor) -> Tensor:
    """The product of both factors rounded to bf16, in float64."""
    return x.bfloat16().double() @ weight.bfloat16().double().T


def test_panels_hold_every_weight_where_the_units_look_for_it() -> None:
    weight = random(70, 96)
    product = Tiles(weight)
    assert fits(96) and not fits(80)
    assert product._weights.shape == (3, 3, 2, 16, 16, 2)  # panels, steps, tiles, pairs of inputs, outputs, of the pair
    for output, at in ((0, 0), (17, 33), (69, 95), (40, 64)):
        place = (output // 32, at // 32, output % 32 // 16, at % 32 // 2, output % 16, at % 2)
        assert product._weights[place] == weight[output, at].bfloat16()
    assert not product._weights[2, :, 0, :, 6:].any(), "outputs that are not there are zero"


@needs_bf16
@given(
    rows=st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 33, 48, 50, 64, 65, 515]),
    outputs=st.sampled_from([1, 16, 33, 64, 130]),
    steps=st.integers(1, 7),
    bias=st.booleans(),
)
def test_sums_are_fp32_and_nothing_else_is_rounded(rows: int, outputs: int, steps: int, bias: bool) -> None:
    x, weight, added = random(rows, 32 * steps), random(outputs, 32 * steps, seed=1), random(outputs, seed=2)
    found = Tiles(weight, added if bias else None)(x)
    assert found.shape == (rows, outputs) and found.dtype == torch.float32
    expected = of_rounded(x, weight) + (added if bias else 0.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    rounding = expected - x.double() @ weight.double().T - (added if bias else 0.0)
    assert not rows or rounding.abs().max() > 1e-4, "as a control"


@needs_bf16
@pytest.mark.parametrize("rows", [7, 32, 100])
def test_a_product_can_be_added_to_another(rows: int) -> None:
    x, weight, y, other = random(rows, 64), random(40, 64, seed=1), random(rows, 32, seed=2), random(40, 32, seed=3)
    first = Tiles(weight)(x)
    both = Tiles(other)(y, first)
    assert both is first
    torch.testing.assert_close(both.double(), of_rounded(x, weight) + of_rounded(y, other), rtol=1e-5, atol=1e-5)


@needs_bf16
def test_rows_may_be_of_any_floating_dtype() -> None:
    x, product = random(40, 64), Tiles(random(48, 64, seed=1))
    assert torch.equal(product(x), product(x.bfloat16()))
    assert torch.equal(product(x.double()), product(x))


@needs_bf16
@pytest.mark.parametrize("bias", [None, random(72, seed=3)], ids=["no", "bias"])
def test_a_frozen_product_rounds_only_when_told(bias: Tensor | None) -> None:
    weight, x = random(72, 64), random(40, 64, seed=1)
    told, other = PanelLinear(weight, bias), PanelLinear(weight, bias)
    told.round(torch.bfloat16)
    expected = of_rounded(x, weight) + (0.0 if bias is None else bias)
    torch.testing.assert_close(told(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(told(x), other(x))
    assert told(x.view(2, 20, 64)).shape == (2, 20, 72)


@needs_bf16
@given(rows=st.integers(1, 100), outputs=st.sampled_from([32, 64, 96, 130]), first=st.integers(0, 99))
def test_a_row_is_the_same_to_the_bit_in_any_company(rows: int, outputs: int, first: int) -> None:
    x, product = random(100, 96), Tiles(random(outputs, 96, seed=1))
    first = min(first, 100 - rows)
    assert torch.equal(product(x)[first : first + rows], product(x[first : first + rows]))


@needs_bf16
def test_broken_neighbours_change_no_bit() -> None:
    x, product = random(16, 64), Tiles(random(64, 64, seed=1))
    broken = x.clone()
    broken[1:, ::3] = float("nan")
    broken[5:, ::2] = float("inf")
    broken[9:] = 1e-40
    assert torch.equal(product(broken)[0], product(x)[0])
    assert product(broken)[1].isnan().all()


@needs_bf16
@pytest.mark.parametrize("rows", [1, 8, 16, 17, 40, 60, 70])
def test_a_call_of_a_program_adds_what_the_module_adds_afterwards(rows: int) -> None:
    x, bias, more = random(rows, 64), random(64, seed=2), random(rows, 64, seed=3)
    product = Tiles(random(64, 64, seed=1), bias)
    expected = product(x) + more
    scratch = product.scratch(rows)
    Program([product.call(x, more, more, scratch)]).run()
    assert torch.equal(more, expected)


def test_a_width_of_no_whole_tiles_stays_exact() -> None:
    weight, x = random(48, 40), random(40, 40, seed=1)
    told = PanelLinear(weight, None)
    told.round(torch.bfloat16)
    assert torch.equal(told(x), PanelLinear(weight, None)(x))


@needs_bf16
@pytest.mark.parametrize("other", [torch.zeros(40, 48), torch.zeros(64, 40).T, torch.zeros(41, 64)[:, :48]])
def test_a_product_is_added_to_another_product_only(other: Tensor) -> None:
    with pytest.raises(AssertionError, match="not a product of ours"):
        Tiles(random(48, 32))(random(40, 32), other)


def nibbles(outputs: int, width: int, seed: int = 0) -> Tensor:
    """A weight as GGUF's Q4_1 holds it: ``d * q + m``, both ends of every block reached."""
    counts = torch.randint(0, 16, (outputs, width // 32, 32), generator=torch.Generator().manual_seed(seed)).float()
    counts[..., 3], counts[..., 17] = 0, 15
    scale, offset = (random(outputs, width // 32, 1, seed=seed + n).half().float() for n in (1, 2))
    return (counts * scale.abs() + offset).flatten(1)


BLOCKS = {"int4": nibbles, "int8": lambda outputs, width, seed=0: rounded_to_bytes(random(outputs, width, seed=seed))}
needs_blocks = pytest.mark.skipif(not (can_tile() and can_unpack()), reason="this CPU unpacks no blocks (AVX512_BF16)")


@needs_blocks
@pytest.mark.parametrize("form", BLOCKS)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 8, 9, 16, 17, 32, 33, 48, 50, 64, 65, 515]),
    outputs=st.sampled_from([32, 64, 70, 160]),
    steps=st.integers(1, 9),
)
def test_blocks_multiply_as_the_numbers_they_stand_for_do(form: str, rows: int, outputs: int, steps: int) -> None:
    weight, x, bias = BLOCKS[form](outputs, 32 * steps), random(rows, 32 * steps, seed=7), random(outputs, seed=8)
    product = PanelLinear(weight, bias)
    assert product.panels.name == form
    product.round(torch.bfloat16)
    assert isinstance(product.panels, Tiles) and product.panels.name == form, "they stay what they are"
    whole = Tiles(weight, bias)
    assert torch.equal(product(x), whole(x))
    assert product.panels.nbytes <= (0.32 if form == "int4" else 0.54) * whole.nbytes


@needs_blocks
@pytest.mark.parametrize("form", BLOCKS)
def test_programs_share_the_room_for_what_was_blocks(form: str) -> None:
    first, second = PanelLinear(BLOCKS[form](64, 96), None), PanelLinear(BLOCKS[form](96, 64, 5), None)
    rows, rooms = 20, Rooms()
    rooms.too_small(rows)
    x, between, out = random(rows, 96), torch.zeros(rows, 64), torch.zeros(rows, 96)
    first.round(torch.bfloat16)
    second.round(torch.bfloat16)
    calls = [first.panels.shared_call(rooms, x, between, None), second.panels.shared_call(rooms, between, out, None)]
    Program(calls).run()
    assert torch.equal(out, second(first(x)))


def test_other_weights_are_no_blocks() -> None:
    product = PanelLinear(random(64, 96), None)
    assert isinstance(product.panels, Panels) and product.panels.blocks() is None
