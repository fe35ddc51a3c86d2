"""Attention over blocks against attention written out over each request alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.kernels.seen import _BESIDES, _shares
from dspark.nn.block_attention import attend
from dspark.nn.blocks import BlockTable, FixedPlan, Plan

HEADS, GROUPS, WIDTH = 2, 3, 8


def written_out(
    q_QnD: Tensor,
    k_HSD: Tensor,
    v_HSD: Tensor,
    start: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
) -> Tensor:
    """One request: queries at positions from ``start`` on over rows in the order of positions; ``[n, Q, D]``."""
    k, v = (t.repeat_interleave(GROUPS, dim=0).double() for t in (k_HSD, v_HSD))
    scores = q_QnD.double() @ k.transpose(1, 2) / math.sqrt(q_QnD.shape[-1])
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    for i in range(q_QnD.shape[1]):
        for j in range(k.shape[1]):
            if (causal and j > start + i) or (window is not None and j <= start + i - window):
                scores[:, i, j] = -math.inf
    if sinks_Q is not None:
        scores = torch.cat((scores, sinks_Q.double()[:, None, None].expand(-1, scores.shape[1], 1)), dim=-1)
    return (scores.softmax(dim=-1)[..., : k.shape[1]] @ v).transpose(0, 1)


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[BlockTable], list[int]]:
    """Block size, tables (whole beginnings may be shared), new tokens of each."""
    size = draw(st.sampled_from([1, 3, 4, 32]))
    counts = draw(st.lists(st.sampled_from([1, 1, 2, 5, 19]), min_size=1, max_size=5) | st.just([19, 19]))
    lengths = [draw(st.integers(0, 11)) for _ in counts]
    numbers = list(range(-(-40 // size) * len(counts)))
    if draw(st.booleans()):
        draw(st.randoms()).shuffle(numbers)
    tables = [
        BlockTable([numbers.pop(0) for _ in range(-(-(length + count) // size))], length)
        for length, count in zip(lengths, counts, strict=True)
    ]
    for table in tables[1:]:
        shared = min(draw(st.integers(0, 2)), table.length // size, tables[0].length // size)
        table.blocks[:shared] = tables[0].blocks[:shared]
    return size, tables, counts


def fixed_plan(tables: list[BlockTable], counts: list[int], size: int) -> FixedPlan:
    """Every token with as many blocks as the longest request has, its own first one in place of those it lacks."""
    most = max(len(table.blocks) for table in tables)
    each = zip(tables, counts, strict=True)
    places = [(table.blocks, table.length + i) for table, count in each for i in range(count)]
    blocks_TM = torch.tensor([blocks + blocks[:1] * (most - len(blocks)) for blocks, _ in places])
    return FixedPlan(blocks_TM, torch.tensor([position for _, position in places]), size)


@given(
    step=steps(),
    causal=st.booleans(),
    window=st.sampled_from([None, None, 2, 7]),
    softcap=st.sampled_from([None, None, 3.0]),
    sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    exact=st.booleans(),
)
def test_every_request_sees_exactly_its_own_rows(
    step: tuple[int, list[BlockTable], list[int]],
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    dtype: torch.dtype,
    exact: bool,
) -> None:
    size, tables, counts = step
    made = torch.Generator().manual_seed(1)
    rows = size * (1 + max(block for table in tables for block in table.blocks))
    keys, values = (torch.randn(HEADS, rows, WIDTH, generator=made).to(dtype) for _ in range(2))
    nobodys = torch.ones(rows, dtype=torch.bool)
    for table in tables:
        for block in table.blocks:
            nobodys[block * size : (block + 1) * size] = False
    keys[:, nobodys] = values[:, nobodys] = math.nan  # read in passing, used never
    query = torch.randn(HEADS * GROUPS, sum(counts), WIDTH, generator=made).to(dtype)
    sinks_Q = torch.randn(HEADS * GROUPS, generator=made) if sinks else None
    plan = Plan(tables, counts, size, torch.device("cpu"), causal, exact)
    assert plan.hurried == (not exact and set(counts) == {19})
    found = attend(query.transpose(0, 1), keys, values, plan, window=window, softcap=softcap, sinks_Q=sinks_Q)
    expected = []
    for table, part in zip(tables, query.split(counts, dim=1), strict=True):
        end = table.length + part.shape[1]
        own = [table.blocks[p // size] * size + p % size for p in range(end)]
        expected.append(written_out(part, keys[:, own], values[:, own], table.length, causal, window, softcap, sinks_Q))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)
    if causal:
        fixed = fixed_plan(tables, counts, size)
        found = attend(query.transpose(0, 1), keys, values, fixed, window=window, softcap=softcap, sinks_Q=sinks_Q)
        torch.testing.assert_close(found.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "softcap", "sinks"), [(None, None, False), (70, None, True), (150, 3.0, False)])
@pytest.mark.parametrize("width", [8, 72, 128])
def test_long_texts_and_wide_heads(
    width: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    causal: bool,
    compiled: bool,
    request: pytest.FixtureRequest,
) -> None:
    """Several stretches of positions, and heads of several slices, which the kernel sums one after another."""
    if not compiled:
        request.getfixturevalue("no_kernels")
    made = torch.Generator().manual_seed(1)
    size, lengths, counts = 48, [190, 63, 64, 128], [3, 1, 2, 5]
    blocks = torch.randperm(20, generator=made).tolist()
    tables = [
        BlockTable([blocks.pop() for _ in range(-(-(n + c) // size))], n) for n, c in zip(lengths, counts, strict=True)
    ]
    keys, values = (torch.randn(HEADS, 20 * size, width, generator=made) for _ in range(2))
    query = 3 * torch.randn(HEADS * GROUPS, sum(counts), width, generator=made)
    sinks_Q = torch.randn(HEADS * GROUPS, generator=made) if sinks else None
    plan = Plan(tables, counts, size, torch.device("cpu"), causal)
    found = attend(query.transpose(0, 1), keys, values, plan, window=window, softcap=softcap, sinks_Q=sinks_Q)
    first, expected = 0, []
    for table, count in zip(tables, counts, strict=True):
        part = query[:, first : first + count]
        own = [table.blocks[p // size] * size + p % size for p in range(table.length + count)]
        expected.append(written_out(part, keys[:, own], values[:, own], table.length, causal, window, softcap, sinks_Q))
        first += count
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("width", [8, 32, 64, 72, 128])
def test_a_cache_of_bf16_is_read_as_the_fp32_numbers_it_holds(width: int, exact: bool) -> None:
    """By the kernel, which reads two numbers at once where whole vectors allow it, and by PyTorch's (whole texts)."""
    made = torch.Generator().manual_seed(1)
    tables, counts = [BlockTable([3, 0], 45), BlockTable([1, 4], 0)], [19, 70]
    keys, values = (torch.randn(HEADS, 5 * 48, width, generator=made) for _ in range(2))
    query = torch.randn(sum(counts), HEADS * GROUPS, width, generator=made)
    plan = Plan(tables, counts, 48, torch.device("cpu"), exact=exact)
    assert plan.hurried != exact
    narrow = [each.bfloat16() for each in (keys, values)]
    found = attend(query, *narrow, plan, window=50)
    expected = attend(query, *(each.float() for each in narrow), plan, window=50)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    assert (found - attend(query, keys, values, plan, window=50)).abs().max() > 1e-3, "control: numbers not rounded"


def test_neighbouring_blocks_of_many_requests_are_one_call_and_a_lone_request_is_one_piece() -> None:
    many = Plan([BlockTable([0, 2], 5), BlockTable([1, 3], 6), BlockTable([4], 1)], [1, 1, 1], 4, torch.device("cpu"))
    assert [[len(p.owners) for p in group.pieces] for group in many.groups] == [[5]]
    alone = Plan([BlockTable([3, 4, 5], 9)], [2], 4, torch.device("cpu"))
    assert alone.groups[0].whole and alone.groups[0].pieces[0].rows == 11


def test_a_small_gap_is_read_and_a_large_one_is_another_call() -> None:
    tables = [BlockTable([0], 40), BlockTable([2], 40), BlockTable([90], 40)]
    (group,) = Plan(tables, [1, 1, 1], 64, torch.device("cpu")).groups
    assert [(piece.owners, piece.rows) for piece in group.pieces] == [((0, -1, 1), 41), ((2,), 41)]


def test_a_series_of_unfilled_blocks_is_not_read_to_its_end() -> None:
    tables = [BlockTable([2 * i, 2 * i + 1], 127) for i in range(4)] + [BlockTable([8 + i], 3) for i in range(6)]
    (group,) = Plan(tables, [1] * 10, 64, torch.device("cpu")).groups
    assert [(len(piece.owners), piece.rows) for piece in group.pieces] == [(8, 64), (6, 4)]


@given(
    reads=st.lists(st.integers(1, 3000), min_size=1, max_size=40) | st.lists(st.just(200), min_size=64, max_size=64),
    count=st.integers(1, 9),
)
def test_threads_share_what_is_to_be_read_and_leave_nothing(reads: list[int], count: int) -> None:
    parts, *ends = _shares(reads, count)
    assert parts == count == len(ends) - 1
    assert ends[0] == 0 and ends[-1] == len(reads) and ends == sorted(ends)
    each = [sum(reads[a:b]) + _BESIDES * (b - a) for a, b in pairwise(ends)]
    assert max(each) <= (sum(reads) + _BESIDES * len(reads)) / count + max(reads) + _BESIDES
    if len(set(reads)) == 1:
        sizes = {b - a for a, b in pairwise(ends)}
        assert max(sizes) - min(sizes) <= 1, "equal ones are shared equally"


@pytest.mark.parametrize("damage", ["order", "row"])
def test_control_a_wrong_table_is_seen(damage: str) -> None:
    made = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(HEADS, 16, WIDTH, generator=made) for _ in range(2))
    query = torch.randn(HEADS * GROUPS, 2, WIDTH, generator=made)
    right = BlockTable([0, 1, 2], 9)
    wrong = BlockTable([1, 0, 2], 9) if damage == "order" else BlockTable([0, 1, 2], 8)
    found = [
        attend(query.transpose(0, 1), keys, values, Plan([t], [2], 4, torch.device("cpu"), True), window=6)
        for t in (right, wrong)
    ]
    assert (found[0] - found[1]).abs().max() > 1e-2
