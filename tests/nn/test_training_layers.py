"""Norm and rotation as training runs them: the formula's values and gradients, under autocast in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dspark.nn.mlp import GATES, GatedMLP
from dspark.nn.norm import RMSNorm
from dspark.nn.precision import for_products
from dspark.nn.rope import Rotary, rotary, rotate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, at: Rotary) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * at.cos - second * at.sin, second * at.cos + first * at.sin), dim=-1)


# No whole vectors, which PyTorch's own operations do; the other sizes are compiled where they can be.
SIZES = [16, 64]


@pytest.mark.parametrize("size", SIZES)
def test_a_norms_gradients_are_those_of_the_formula(size: int) -> None:
    norm = RMSNorm(size, 1e-3)
    norm.weight.data = random(size, seed=1)
    ours, theirs = (random(2, 3, 5, size).requires_grad_() for _ in range(2))
    weight, grad = norm.weight.detach().clone().requires_grad_(), random(2, 3, 5, size, seed=2)
    found, expected = norm(ours), torch.nn.functional.rms_norm(theirs, (size,), weight, 1e-3)
    found.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad, weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (3,), (2, 1), (1, 1), ()])
def test_norm_and_rotation_as_one_are_both(size: int, shape: tuple[int, ...]) -> None:
    """Whatever the angles' shape, ``[2, 3]`` tokens go round in them as they would by broadcasting."""
    at = rotary(torch.arange(torch.Size(shape).numel()).view(shape) * 7, size, 1e4)
    norms = [RMSNorm(size, 1e-3) for _ in range(2)]
    for norm in norms:
        norm.weight.data = random(size, seed=1)
    ours, theirs = (random(2, 3, 5, size).requires_grad_() for _ in range(2))
    found, expected = norms[0].turned(ours, at), turned(norms[1](theirs), at)
    for each in (found, expected):
        each.backward(random(2, 3, 5, size, seed=2))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(norms[0].weight.grad, norms[1].weight.grad, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("size", SIZES)
def test_what_products_take_is_rounded_once(size: int) -> None:
    norm, x = RMSNorm(size, 1e-3), random(2, 4, size)
    assert torch.equal(norm.for_products(x), norm(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm.for_products(x), norm(x).bfloat16())


@pytest.mark.parametrize("act", GATES)
def test_a_gated_networks_gradients_are_those_of_the_formula(act: str) -> None:
    network = GatedMLP(32, 64, act)
    x, grad = random(3, 32), random(3, 32, seed=2)
    network(x).backward(grad)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
    gate, up, down = (weights[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    ((GATES[act](x @ gate.T) * (x @ up.T)) @ down.T).backward(grad)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, weights[name].grad, rtol=1e-5, atol=1e-6)


def test_a_rotations_gradient_turns_back() -> None:
    at = rotary(torch.randint(0, 300, (2, 3), generator=torch.Generator().manual_seed(0)), 8, 1e4)
    ours, theirs = (random(2, 3, 5, 8).requires_grad_() for _ in range(2))
    found, expected = rotate(ours, at), turned(theirs, at)
    for each in (found, expected):
        each.backward(random(2, 3, 5, 8, seed=2))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_under_autocast_both_stay_fp32_and_products_share_one_cast() -> None:
    norm, x = RMSNorm(8, 1e-3), random(2, 4, 8)
    at = rotary(torch.arange(2), 8, 1e4)
    narrow = x.bfloat16()
    assert norm(narrow).dtype == rotate(narrow, at).dtype == torch.bfloat16
    assert for_products(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(narrow).dtype == rotate(narrow, at).dtype == torch.float32
        inside = norm(narrow), rotate(narrow, at)
        assert torch.equal(for_products(x), narrow)
    outside = norm(narrow.float()), rotate(narrow.float(), at)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True)), "nothing in them is rounded"
