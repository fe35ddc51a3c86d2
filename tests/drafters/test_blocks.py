"""Context rows and blocks of many requests: modules and compiled kernels, rows that wait, rooms that grow."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dspark.decoding.proposer import _slot_by_slot
from dspark.decoding.request import Request, Running
from dspark.drafters.blocks import _WAITING, DrafterBlocks
from dspark.drafters.dspark import DSparkDrafter
from dspark.nn.blocks import BlockTable
from dspark.speculation.draws import SeededDraws
from dspark.speculation.sampling import Sampling
from tiny import VOCAB, tiny_drafter, tiny_target

TARGET = tiny_target()
PRUNED = {"draft_ids": tuple(range(0, VOCAB, 2))}


def made(packed: bool, **changes: object) -> DSparkDrafter:
    drafter = tiny_drafter(TARGET, **changes)
    for name, parameter in drafter.named_parameters():  # fresh norms are ones, which would hide an order
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    if packed:
        drafter.pack()
        assert drafter.compiled is not None and drafter.greedy_chain is not None
    return drafter


DRAFTERS = {"modules": made(False), "compiled": made(True)}


def features(rows: int, seed: int) -> Tensor:
    width = DRAFTERS["modules"].config.taps_width
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def filled(drafter: DSparkDrafter, tables: Sequence[BlockTable]) -> DrafterBlocks:
    """Blocks with random features for every position of every table."""
    blocks = DrafterBlocks(drafter, 8, 32)
    for number, table in enumerate(tables):
        if not table.length:
            continue
        rows = BlockTable(table.blocks).rows(table.length, 32)
        blocks.extend(features(len(rows), number), torch.arange(len(rows)), torch.tensor(rows))
    return blocks


TABLES = [BlockTable([3], 9), BlockTable([6, 0], 40), BlockTable([1, 5], 32), BlockTable([2], 0)]
ANCHORS = [5, 17, 60, 0]


@torch.inference_mode()
def hidden(drafter: DSparkDrafter, parts: list[list[int]], at_once: bool) -> tuple[Tensor, list[Tensor]]:
    """A draft after positions that came in these parts, and the cached rows; ``at_once``: nothing waits."""
    blocks = DrafterBlocks(drafter, 2, 128)
    for number, rows in enumerate(parts):
        blocks.extend(features(len(rows), number), torch.tensor(rows), torch.tensor(rows))
        if at_once:
            blocks._take()
    found = blocks.hidden([5], [BlockTable([0], 1 + max(row for rows in parts for row in rows))])
    return found, [*blocks.cache.keys, *blocks.cache.values]


def same(kind: str, parts: list[list[int]]) -> bool:
    drafter = DRAFTERS[kind]
    (a, rows_a), (b, rows_b) = hidden(drafter, parts, at_once=True), hidden(drafter, parts, at_once=False)
    pairs = [(a, b), *zip(rows_a, rows_b, strict=True)]
    if kind == "compiled":
        return all(torch.equal(x, y) for x, y in pairs)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in pairs)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_features_that_waited_are_those_that_did_not(kind: str) -> None:
    assert same(kind, [[0, 1, 2], [3], [4], [5, 6]])


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_row_that_was_written_again_holds_what_came_last(kind: str) -> None:
    assert same(kind, [[0, 1, 2], [2, 3], [1, 2, 3, 4], [4]])


def test_many_do_not_wait() -> None:
    blocks = DrafterBlocks(DRAFTERS["modules"], 2, 128)
    with torch.inference_mode():
        for row in range(_WAITING):
            assert len(blocks._waiting) == row
            blocks.extend(features(1, row), torch.tensor([row]), torch.tensor([row]))
    assert not blocks._waiting and not blocks._waiting_rows


@torch.inference_mode()
def test_compiled_kernels_give_the_modules_numbers() -> None:
    expected = filled(DRAFTERS["modules"], TABLES).hidden(ANCHORS, TABLES)
    found = filled(DRAFTERS["compiled"], TABLES).hidden(ANCHORS, TABLES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Rotated by half an angle more, or seeing one row less, they would not.
    elsewhere = [BlockTable(table.blocks, max(0, table.length - 1)) for table in TABLES]
    assert not torch.allclose(filled(DRAFTERS["compiled"], TABLES).hidden(ANCHORS, elsewhere), expected, atol=1e-3)


@torch.inference_mode()
def test_a_compiled_block_is_the_same_to_the_bit_in_any_company() -> None:
    together = filled(DRAFTERS["compiled"], TABLES).hidden(ANCHORS, TABLES)
    for i, table in enumerate(TABLES):
        alone = filled(DRAFTERS["compiled"], TABLES).hidden([ANCHORS[i]], [table])
        assert torch.equal(alone[0], together[i])


@torch.inference_mode()
def test_a_confidence_is_the_same_to_the_bit_in_any_company() -> None:
    # It decides what a sampled request verifies, and so its text.
    drafter = made(True)
    generator = torch.Generator().manual_seed(0)
    hidden_RKd = torch.randn(7, 5, drafter.config.hidden_size, generator=generator)
    prev_RK = torch.randint(0, drafter.config.vocab_size, (7, 5), generator=generator)
    together = drafter.confidence_logits(hidden_RKd, prev_RK)
    for row in range(7):
        for slots in (1, 2, 5):
            alone = drafter.confidence_logits(
                hidden_RKd[row : row + 1, :slots].contiguous(), prev_RK[row : row + 1, :slots]
            )
            assert torch.equal(alone[0], together[row, :slots])


@pytest.mark.parametrize("changes", [{}, PRUNED, {"enable_confidence_head": False}], ids=["whole", "pruned", "silent"])
@torch.inference_mode()
def test_a_greedy_chain_is_the_one_drawn_slot_by_slot(changes: dict[str, object]) -> None:
    drafter = made(True, **changes)
    blocks = filled(drafter, TABLES)
    rows = [Running(Request("r", [a], Sampling(), 0, 8), SeededDraws(0), 8, None) for a in ANCHORS]
    hidden_RKd = blocks.hidden(ANCHORS, TABLES)
    assert drafter.greedy_chain is not None
    for some in ([0], [1, 3], [0, 1, 2, 3]):
        expected = _slot_by_slot(blocks, [rows[i] for i in some], hidden_RKd[some])
        found = drafter.greedy_chain.run(hidden_RKd[some], [ANCHORS[i] for i in some])
        assert found.T.tolist() == [draft.tokens for draft in expected]
    assert len({tuple(row) for row in found.T.tolist()}) > 1, "a chain that never differs shows nothing"


@torch.inference_mode()
def test_a_chain_of_broken_numbers_is_refused() -> None:
    drafter = DRAFTERS["compiled"]
    hidden_RKd = filled(drafter, TABLES).hidden(ANCHORS, TABLES)
    hidden_RKd[2, 1] = torch.nan
    assert drafter.greedy_chain is not None
    with pytest.raises(ArithmeticError, match="NaN"):
        drafter.greedy_chain.run(hidden_RKd, ANCHORS)


@pytest.mark.parametrize("kind", DRAFTERS)
@torch.inference_mode()
def test_a_bigger_room_holds_the_same_rows(kind: str) -> None:
    table = BlockTable([0], 20)
    small = DrafterBlocks(DRAFTERS[kind], 1, 32)
    small.extend(features(20, 0), torch.arange(20), torch.arange(20))
    bigger = small.grown(300)
    assert bigger.cache.size == 300
    torch.testing.assert_close(bigger.hidden([7], [table]), small.hidden([7], [table]), rtol=1e-6, atol=1e-6)


def test_without_kernels_a_packed_drafter_keeps_its_modules(no_kernels: None) -> None:
    drafter = tiny_drafter(TARGET)
    drafter.pack()
    assert drafter.compiled is None and drafter.greedy_chain is None and len(drafter.layers) == 2
