"""Packed weights compute what ``linear`` computes, and half precision is only for weights that lose nothing by it."""

from __future__ import annotations

import pytest
import torch

from dspark.nn.packed import HalfLinear, PackedLinear, can_halve, few_rows_linear, pack_linears

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


def test_linears_are_replaced_in_place() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 3, bias=False)))
    x = torch.randn(2, 8)
    expected = module(x).detach()
    assert pack_linears(module) == 2 and isinstance(module[0], PackedLinear)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
