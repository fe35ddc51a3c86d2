"""Draws from what a rejected draft leaves of the target's law: the numbers of the formula, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels.machine import can_compile
from dspark.kernels.rest import Rest, draw_rests
from dspark.speculation.draws import invert
from dspark.speculation.rejection import residual

pytestmark = pytest.mark.skipif(not can_compile(), reason="kernels are not compiled on this processor")

V = 320


def laws(rows: int, width: int, seed: int = 0) -> Tensor:
    """Random ones, some far from even."""
    return (4 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def drawn(p_NV: Tensor, rests: list[Rest], u: list[float]) -> tuple[list[int], list[float]]:
    """Ids and masses."""
    ids, mass = draw_rests(p_NV, rests, torch.tensor(u, dtype=torch.float64))
    return ids.tolist(), mass.tolist()


def written_out(p_V: Tensor, rest: Rest, u: float) -> int:
    """The formula of rejection sampling, and the inverse CDF of the reference loop."""
    if rest.p_d_S is None:
        return invert(p_V.double(), u)
    p_d_V = p_V.new_zeros(len(p_V))
    p_d_V[... if rest.support_S is None else rest.support_S] = rest.p_d_S
    return invert(residual(p_d_V, p_V), u)


@given(st.integers(0, 1000), st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4))
def test_every_row_draws_as_the_formula_does(seed: int, u: list[float]) -> None:
    p_t, p_d, few = laws(6, V, seed), laws(2, V, seed + 1), laws(1, 40, seed + 2)[0]
    support = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:40].sort().values
    certain = Rest(5, torch.ones(1), torch.tensor([7]))
    rests = [Rest(1, p_d[0]), Rest(4, few, support), Rest(0), certain]
    ids, mass = drawn(p_t, rests, u)
    assert ids == [written_out(p_t[rest.row], rest, each) for rest, each in zip(rests, u, strict=True)]
    assert mass[0] == pytest.approx(float((p_t[1].double() - p_d[0].double()).clamp(min=0).sum()))
    assert ids[3] != 7, "what a certain draft had is taken away whole"


def test_what_is_taken_away_matters() -> None:
    p_t, p_d = laws(1, V), laws(1, V, 1)[0]
    u = [i / 64 for i in range(64)]
    plain, rest = (drawn(p_t, [each] * 64, u)[0] for each in (Rest(0), Rest(0, p_d)))
    assert plain != rest


def test_nothing_left_is_said_and_what_is_no_number_too() -> None:
    p_t = laws(2, V)
    p_t[1, 3] = math.nan
    ids, mass = drawn(p_t, [Rest(0, p_t[0]), Rest(1, p_t[0])], [0.5, 0.5])
    assert ids[0] == -1 and mass[0] == 0 and math.isnan(mass[1])


def test_a_row_does_not_depend_on_its_company() -> None:
    p_t, p_d = laws(8, V), laws(8, V, 1)
    rests, u = [Rest(i, p_d[i]) for i in range(8)], [(i + 0.5) / 8 for i in range(8)]
    together = drawn(p_t, rests, u)
    alone = [drawn(p_t, [rest], [each]) for rest, each in zip(rests, u, strict=True)]
    assert together == ([ids[0] for ids, _ in alone], [mass[0] for _, mass in alone])
