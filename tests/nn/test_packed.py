"""Frozen products compute what ``linear`` computes, in every layout and however they are joined."""

from __future__ import annotations

import pytest
import torch

from dspark.kernels.machine import lanes
from dspark.nn.packed import (
    JoinedLinear,
    PackedLinear,
    PanelLinear,
    bytes_by_form,
    frozen_linear,
    join_linears,
    pack_linears,
)

WEIGHT = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [None, BIAS], ids=["no", "bias"])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 4, 24)], ids=str)
@pytest.mark.parametrize("kind", [PanelLinear, PackedLinear])
def test_every_layout_computes_the_same(
    kind: type[PanelLinear | PackedLinear], shape: tuple[int, ...], bias: torch.Tensor | None
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for weight in (WEIGHT, WEIGHT.bfloat16().float()):
        expected = torch.nn.functional.linear(x, weight, bias)
        found = kind(weight, bias)(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_lie_one_behind_the_other_are_understood() -> None:
    rows = torch.randn(6, 48, generator=torch.Generator().manual_seed(2))[::2, ::2]
    torch.testing.assert_close(PanelLinear(WEIGHT, None)(rows), torch.nn.functional.linear(rows, WEIGHT))


def test_rows_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match="rows of torch.bfloat16, expected torch.float32"):
        PanelLinear(WEIGHT, None)(torch.zeros(1, 24, dtype=torch.bfloat16))


def test_a_weight_that_cannot_be_packed_stays_a_linear_layer() -> None:
    assert isinstance(frozen_linear(WEIGHT, BIAS), PanelLinear)
    narrow = frozen_linear(WEIGHT.bfloat16(), BIAS.bfloat16())
    assert type(narrow) is torch.nn.Linear and narrow.weight.dtype == torch.bfloat16


def test_without_kernels_of_our_own_onednns_layout_is_used(no_kernels: None) -> None:
    assert isinstance(frozen_linear(WEIGHT), PackedLinear)


def test_bytes_are_counted_by_form() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False), torch.nn.Linear(40, 32, bias=False))
    module[1].weight.data = module[1].weight.data.half().float()
    assert bytes_by_form(module) == {"float32": 4 * 40 * (24 + 32)}
    pack_linears(module)
    padded = -(-40 // lanes()) * lanes()
    assert padded in (48, 64), "outputs fill panels of 16, with AVX-512 of 32"
    assert bytes_by_form(module) == {"float32": 4 * padded * 24, "float16": 2 * 32 * 40}


def test_linears_are_replaced_in_place() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 3, bias=False)))
    x = torch.randn(2, 8)
    expected = module(x).detach()
    assert pack_linears(module) == 2 and isinstance(module[0], PanelLinear)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


class Attention(torch.nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj = torch.nn.Linear(8, 6, bias=bias), torch.nn.Linear(8, 2, bias=bias)
        self.v_proj = torch.nn.Linear(8, 2, bias=bias)


@pytest.mark.parametrize("bias", [False, True])
def test_projections_of_the_same_rows_become_one_product_in_any_order_of_calls(bias: bool) -> None:
    module = Attention(bias)
    plain = {name: child for name, child in module.named_children()}
    assert join_linears(module) == 2
    x, other = torch.randn(3, 8), torch.randn(3, 8)
    for name, rows in [("q_proj", x), ("k_proj", x), ("v_proj", x), ("v_proj", x), ("q_proj", other), ("k_proj", x)]:
        child = getattr(module, name)
        assert isinstance(child, JoinedLinear)
        torch.testing.assert_close(child(rows), plain[name](rows), rtol=1e-5, atol=1e-5)
    joined = module.q_proj.joined
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(module, name)(other)
    assert joined._held is None, "nothing is kept when all parts are taken"


def test_rows_of_two_threads_are_not_mixed_up() -> None:
    module, a, b = Attention(bias=False), torch.randn(3, 8), torch.randn(3, 8)
    plain = module.q_proj
    join_linears(module)
    product = module.q_proj.joined.product

    class Interrupted(torch.nn.Module):
        """While the product of ``a`` is made, somebody else asks for that of ``b``."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x is a:
                module.q_proj(b)
            return product(x)

    module.q_proj.joined.product = Interrupted()
    torch.testing.assert_close(module.q_proj(a), plain(a), rtol=1e-5, atol=1e-5)


def test_projections_that_do_not_go_together_are_left_alone() -> None:
    module = Attention(bias=False)
    module.k_proj = torch.nn.Linear(8, 2, bias=True)
    assert join_linears(module) == 0
    del module.v_proj
    assert join_linears(module) == 0
