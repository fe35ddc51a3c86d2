"""Compiled steps of sequential heads against PyTorch's, and each row for itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dspark.kernels.mixed import gated, recurred


def random(*shape: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 7, 600])
def test_a_gate_opens_for_what_was_looked_up(rows: int) -> None:
    gate, embedded = random(rows, 32), random(rows, 32, seed=1)
    found = gated(gate, embedded)
    torch.testing.assert_close(found, gate.sigmoid() * embedded, rtol=3e-6, atol=1e-6)
    assert torch.equal(found[-1:], gated(gate[-1:].contiguous(), embedded[-1:].contiguous())), "alone or in a team"


@pytest.mark.parametrize("rows", [1, 7, 600])
@pytest.mark.parametrize("first", [True, False])
def test_a_state_goes_on(rows: int, first: bool) -> None:
    joint, state = random(2, rows, 96), random(2, rows, 32, seed=1)
    gate, candidate, out = joint.chunk(3, dim=-1)
    kept = gate.sigmoid()
    before = torch.zeros_like(state) if first else state
    summed, after = recurred(joint, None if first else state)
    torch.testing.assert_close(after, kept * before + (1 - kept) * candidate.tanh(), rtol=3e-6, atol=2e-6)
    torch.testing.assert_close(summed, out.tanh(), rtol=3e-6, atol=2e-6)
    alone = recurred(joint[1:, -1:].contiguous(), None if first else state[1:, -1:].contiguous())
    assert torch.equal(alone[0], summed[1:, -1:]) and torch.equal(alone[1], after[1:, -1:])
    assert torch.equal(state, random(2, rows, 32, seed=1)), "the state before is not written to"


def test_gates_of_any_size_are_numbers_and_nan_stays() -> None:
    gate = torch.tensor([-1e30, -1000.0, -88.5, -0.0, 88.5, 1000.0, 1e30, torch.nan])[None]
    found = gated(gate, torch.ones_like(gate))
    assert found[0, 0] == 0 and found[0, 6] == 1 and found[0, :7].isfinite().all() and found[0, 7].isnan()


def test_control_a_state_that_is_forgotten_is_another() -> None:
    joint, state = random(3, 96), random(3, 32, seed=1)
    assert not torch.equal(recurred(joint, None)[1], recurred(joint, state)[1])
