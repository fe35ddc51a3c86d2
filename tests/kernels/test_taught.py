"""Norms, rotations and gates of training, compiled: values and gradients of the formulas in double precision."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, silu

from dspark.kernels.machine import can_compile
from dspark.kernels.taught import (
    Angles,
    can_gate,
    can_teach,
    gate_backward,
    gate_forward,
    norm_backward,
    norm_forward,
)
from dspark.nn.mlp import GATES

pytestmark = pytest.mark.skipif(not can_compile(), reason="no kernels on this CPU")

DTYPES = (torch.float32, torch.bfloat16)
# Of a number's own size, or of one: what sums of fp32 err by, and half of a last place of bf16 besides.
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 2**-8 + 2e-5}
EPS = 1e-3


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(tokens: int, heads: int, width: int) -> Angles:
    turns = random(tokens, width // 2, seed=3)
    return Angles(turns.cos(), turns.sin(), heads)


def turned(x: Tensor, at: Angles) -> Tensor:
    """``x [N, d]`` by the definition, its rows being heads of tokens that go round."""
    token = (torch.arange(len(x)) // at.heads) % len(at.cos)
    cos, sin = (each[token].double() for each in at[:2])
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@pytest.mark.parametrize(("given", "wanted", "turns"), [*product(DTYPES, DTYPES, (False, True))])
@pytest.mark.parametrize("width", [32, 64, 576])
def test_a_norm_and_its_gradients(given: torch.dtype, wanted: torch.dtype, turns: bool, width: int) -> None:
    x, grad = random(36, width, seed=0, dtype=given), random(36, width, seed=1, dtype=wanted)
    weight, at = 1 + random(width, seed=2), angles(6, 3, width) if turns else None
    exact = [each.double().requires_grad_() for each in (x, weight)]
    normed = rms_norm(exact[0], (width,), exact[1], EPS)
    expected = normed if at is None else turned(normed, at)
    expected.backward(grad.double())

    found, inverse = norm_forward(x, weight, EPS, at, wanted)
    of_x, of_weight = norm_backward(grad, x, weight, inverse, at)
    assert (found.dtype, of_x.dtype, of_weight.dtype) == (wanted, given, torch.float32)
    assert_near(found, expected.detach(), CLOSE[wanted])
    assert_near(of_x, exact[0].grad, CLOSE[given])
    assert_near(of_weight, exact[1].grad, CLOSE[torch.float32])
    if at is not None:
        plain, _ = norm_backward(grad, x, weight, inverse, None)
        with pytest.raises(AssertionError):
            assert_near(plain, exact[0].grad, CLOSE[given])


@pytest.mark.parametrize(("name", "dtype"), [*product(GATES, DTYPES)])
def test_a_gate_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": silu,
        "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    }
    assert can_gate(name)
    gate, up, grad = (random(9, 96, seed=seed, dtype=dtype) * 3 for seed in range(3))
    gate[0] *= 30  # far from where anything bends
    exact = [each.double().requires_grad_() for each in (gate, up)]
    expected = functions[name](exact[0]) * exact[1]
    expected.backward(grad.double())

    assert_near(gate_forward(gate, up, name), expected.detach(), CLOSE[dtype])
    for found, each in zip(gate_backward(grad, gate, up, name), exact, strict=True):
        assert found.dtype == dtype
        assert_near(found, each.grad, CLOSE[dtype])


def test_the_same_gradients_in_every_run() -> None:
    x, grad, weight = random(1000, 64, seed=0), random(1000, 64, seed=1), 1 + random(64, seed=2)
    _, inverse = norm_forward(x, weight, EPS, None, torch.float32)
    first = norm_backward(grad, x, weight, inverse, None)
    for _ in range(20):
        again = norm_backward(grad, x, weight, inverse, None)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_they_take() -> None:
    assert can_teach(random(4, 64, seed=0), 64)
    assert can_teach(random(4, 64, seed=0, dtype=torch.bfloat16), 64)
    for x in (random(4, 64, seed=0).double(), random(4, 128, seed=0)[:, ::2], random(0, 64, seed=0)):
        assert not can_teach(x, 64)
    assert not can_teach(random(4, 48, seed=0), 48)
    assert not can_gate("relu")


def assert_near(found: Tensor, expected: Tensor | None, close: float) -> None:
    assert expected is not None
    apart = (found.double() - expected).abs()
    assert float((apart / expected.abs().clamp(min=1)).max()) < close
