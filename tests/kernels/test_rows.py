"""Compiled norms, gates and rotations against PyTorch's, and each row for itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm, silu

from dspark.kernels.rows import (
    _ALONE,
    HeadNorms,
    can_row,
    can_search,
    copy_call,
    first_largest,
    follow_call,
    gate_name,
    gate_rows,
    norm_call,
    norm_rows,
    turn_and_store,
)
from dspark.nn.lean import turn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 3, _ALONE // 64 + 5])
def test_norms(tokens: int) -> None:
    x, weight = random(1, tokens, 64) * torch.logspace(-4, 2, tokens)[:, None], random(64, seed=1)
    found = norm_rows(x, weight, 1e-5)
    torch.testing.assert_close(found, rms_norm(x, (64,), weight, 1e-5), rtol=2e-6, atol=1e-7)
    assert torch.equal(found[:, -1:], norm_rows(x[:, -1:].contiguous(), weight, 1e-5)), "alone or in a team"


@pytest.mark.parametrize("tokens", [1, 7, _ALONE // 64 + 5])
def test_norms_beside_each_other(tokens: int) -> None:
    """Rows of two norms lie in one tensor; nothing else of it is written."""
    some, others, weight, out = random(tokens, 64), random(tokens, 32, seed=1), random(64), torch.zeros(tokens + 1, 104)
    for x, place in ((some, slice(0, 64)), (others, slice(64, 96))):
        kernel, table = norm_call(x, out[:tokens, place], weight[: x.shape[1]], 1e-5)
        kernel(*table)
        assert torch.equal(out[:tokens, place], norm_rows(x, weight[: x.shape[1]], 1e-5))
    assert not out[tokens:].any() and not out[:, 96:].any()


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_normed_row_may_be_added(tokens: int) -> None:
    x, weight, sums = random(tokens, 64), random(64, seed=1), random(tokens, 64, seed=2)
    expected = sums + norm_rows(x, weight, 1e-5)
    kernel, table = norm_call(x, sums, weight, 1e-5, adds=True)
    kernel(*table)
    assert torch.equal(sums, expected)


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_copies(tokens: int) -> None:
    x, out = random(tokens, 72), torch.zeros(tokens + 1, 72)
    kernel, table = copy_call(x, out[:tokens])
    kernel(*table)
    assert torch.equal(out[:tokens], x) and not out[tokens:].any()
    beside = torch.zeros(tokens, 3, 72)
    kernel, table = copy_call(x, beside[:, 1])
    kernel(*table)
    assert torch.equal(beside[:, 1], x) and not beside[:, ::2].any()


@pytest.mark.parametrize("tokens", [1, _ALONE // 48 + 5])
@pytest.mark.parametrize(("name", "act"), [("silu", silu), ("gelu_tanh", lambda x: gelu(x, approximate="tanh"))])
def test_gates(name: str, act: object, tokens: int) -> None:
    both = random(tokens, 96) * 8
    gate, up = both.chunk(2, dim=-1)
    found = gate_rows(both, name)
    torch.testing.assert_close(found, act(gate) * up, rtol=3e-6, atol=2e-5)  # type: ignore[operator]
    assert torch.equal(found[-1:], gate_rows(both[-1:].contiguous(), name))
    assert gate_name(act) == name  # type: ignore[arg-type]


def test_gates_of_any_size_are_numbers() -> None:
    gate = torch.tensor([-1e30, -1000.0, -88.5, -87.5, -0.0, 87.5, 88.5, 1000.0])
    both = torch.cat((gate, torch.ones(8)))[None]
    for name, act in (("silu", silu), ("gelu_tanh", lambda x: gelu(x, approximate="tanh"))):
        torch.testing.assert_close(
            gate_rows(both, name)[0], act(gate), rtol=1e-6, atol=1e-30 if name == "silu" else 1e-5
        )


def test_a_gate_of_another_kind_is_nobodys() -> None:
    assert gate_name(gelu) is None and gate_name(torch.relu) is None


@pytest.mark.parametrize("tokens", [1, 7, _ALONE // 56 + 5])
def test_rotation_and_the_way_into_the_cache(tokens: int) -> None:
    queries, keys, width = 3, 2, 8
    heads = random(tokens, queries + 2 * keys, width)
    angles = random(tokens, 1, width // 2, seed=1)
    rotation = torch.complex(angles.cos(), angles.sin())
    rows = torch.randperm(2 * tokens, generator=torch.Generator().manual_seed(2))[:tokens]
    expected, given, cache = heads.clone(), heads.clone(), random(2 * keys, 2 * tokens, width, seed=3)
    stored = cache.clone()
    turn(expected[:, : queries + keys], rotation)
    stored.index_copy_(1, rows, expected[:, queries:].transpose(0, 1))
    turn_and_store(heads, rotation, queries + keys, queries, rows, cache)
    torch.testing.assert_close(heads, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cache, stored, rtol=1e-6, atol=1e-6)
    untouched = sorted(set(range(2 * tokens)) - set(rows.tolist()))
    assert torch.equal(cache[:, untouched], stored[:, untouched])
    narrow = torch.zeros(cache.shape, dtype=torch.bfloat16)
    turn_and_store(given, rotation, queries + keys, queries, rows, narrow)
    assert torch.equal(given, heads) and torch.equal(narrow[:, rows], cache[:, rows].bfloat16())
    assert not narrow[:, untouched].any()


@pytest.mark.parametrize("tokens", [1, 7, _ALONE // 56 + 5])
def test_heads_are_normed_before_they_are_rotated(tokens: int) -> None:
    queries, keys, width = 3, 2, 16
    wide = random(tokens, 2, queries + 2 * keys, width)  # heads of two layers side by side
    heads, angles = wide[:, 1], random(tokens, 1, width // 2, seed=1)
    rotation = torch.complex(angles.cos(), angles.sin())
    norms = HeadNorms(random(width, seed=4), random(width, seed=5), (1e-5, 3.0))
    expected = heads.clone()
    expected[:, :queries] = rms_norm(heads[:, :queries], (width,), norms.queries, norms.eps[0])
    expected[:, queries:-keys] = rms_norm(heads[:, queries:-keys], (width,), norms.keys, norms.eps[1])
    turn(expected[:, : queries + keys], rotation)
    other, cache = wide[:, 0].clone(), torch.zeros(2 * keys, tokens, width)
    turn_and_store(heads, rotation, queries + keys, queries, torch.arange(tokens), cache, norms)
    torch.testing.assert_close(heads, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache, heads[:, queries:].transpose(0, 1)) and torch.equal(wide[:, 0], other)


def test_what_was_found_is_followed_to_its_row() -> None:
    table, support, found = random(50, 8), torch.tensor([3, 9, 40, 49]), torch.tensor([3, 0, 2, -1])
    for chosen, wanted in ((support, [49, 3, 40, 3]), (None, [3, 0, 2, 0])):
        ids, out = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 8)
        kernel, numbers = follow_call(found, chosen, ids, table, out)
        kernel(*numbers)
        assert ids.tolist() == wanted and torch.equal(out, table[wanted])
    kernel, numbers = follow_call(found, None, ids, table, out, scale=25.25)
    kernel(*numbers)
    assert torch.equal(out, table[[3, 0, 2, 0]] * 25.25)


def test_what_is_no_number_stays_none() -> None:
    both = torch.ones(1, 32)
    both[0, 3] = torch.nan
    assert gate_rows(both, "silu").isnan().tolist() == [[i == 3 for i in range(16)]]


def test_other_rows_are_left_to_pytorch() -> None:
    x = random(4, 64)
    assert can_row(x, 64)
    assert not can_row(x.bfloat16(), 64) and not can_row(x.T, 4) and not can_row(random(4, 12), 12)


def test_without_kernels_rows_are_left_to_pytorch(no_kernels: None) -> None:
    assert not can_row(random(4, 64), 64)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_first_of_the_largest_is_found_wherever_it_is(rows: int) -> None:
    logits = random(rows, 128).round()  # full of ties
    expected = [min(i for i, number in enumerate(row) if number == max(row)) for row in logits.tolist()]
    assert first_largest(logits).tolist() == expected
    for place in range(128):
        logits[-1, place] = 50.0
        assert first_largest(logits)[-1] == place
        logits[-1, place] = -50.0
    assert first_largest(torch.full((rows, 64), -torch.inf)).tolist() == [-1] * rows
    logits[-1] = -torch.inf
    logits[-1, 11] = -50.0  # all others are masked
    assert first_largest(logits).tolist() == [*expected[:-1], 11]
    for number in (torch.nan, torch.inf):
        logits[-1, 77] = number
        assert first_largest(logits).tolist() == [*expected[:-1], -1]
    assert not can_search(random(3, 40)) and can_search(logits)
