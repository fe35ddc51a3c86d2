"""Packed weights compute what ``linear`` computes, and half precision is only for weights that lose nothing by it."""

from __future__ import annotations

import pytest
import torch

from dspark.nn.packed import (
    HalfLinear,
    JoinedLinear,
    PackedLinear,
    TwoFormLinear,
    can_halve,
    few_rows_linear,
    join_linears,
    pack_linears,
)

WEIGHT = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "bias", [None, torch.randn(40, generator=torch.Generator().manual_seed(1))], ids=["no", "bias"]
)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 4, 24)], ids=str)
def test_every_layout_computes_the_same(shape: tuple[int, ...], bias: torch.Tensor | None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for weight in (WEIGHT, WEIGHT.bfloat16().float()):
        expected = torch.nn.functional.linear(x, weight, bias)
        found = few_rows_linear(weight, bias)(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_weights_that_lose_nothing_are_halved() -> None:
    rounded = WEIGHT.bfloat16().float()
    if "fbgemm" in torch.backends.quantized.supported_engines:
        assert isinstance(few_rows_linear(rounded), HalfLinear)
    assert isinstance(few_rows_linear(WEIGHT), PackedLinear)
    assert not can_halve(rounded.index_fill(0, torch.tensor([3]), 1e6)), "beyond the range of half precision"
    assert not can_halve(rounded.bfloat16())


def test_where_the_kernels_are_missing_the_other_layout_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "fbgemm_linear_fp16_weight_fp32_activation")
    assert isinstance(few_rows_linear(WEIGHT.bfloat16().float()), PackedLinear)


@pytest.mark.parametrize("limit", [0, 4, 99])
def test_two_forms_are_one_product(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspark.nn.packed.FEW_ROWS", limit)
    weight, bias = WEIGHT.half().float(), torch.randn(40, generator=torch.Generator().manual_seed(1))
    product = TwoFormLinear(weight, bias)
    for rows in (1, 4, 5, 30):
        x = torch.randn(2, rows, 24, generator=torch.Generator().manual_seed(rows))[:1]
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(product(x), expected, rtol=1e-5, atol=1e-5)


def test_linears_are_replaced_in_place() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 3, bias=False)))
    x = torch.randn(2, 8)
    expected = module(x).detach()
    assert pack_linears(module) == 2 and isinstance(module[0], PackedLinear)
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
