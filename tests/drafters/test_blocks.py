"""Context rows and blocks of many requests: modules and compiled kernels, rows that wait, rooms that grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dspark.decoding.proposer import _as_program, _slot_by_slot
from dspark.decoding.request import Request, Running
from dspark.decoding.sampler import _drawn_from
from dspark.drafters.blocks import DrafterBlocks
from dspark.drafters.choice import Chance
from dspark.drafters.dspark import DSparkDrafter
from dspark.kernels.tiles import can_tile
from dspark.kernels.whole import can_count
from dspark.nn.blocks import BlockTable
from dspark.nn.packed import bytes_by_form
from dspark.speculation.draws import SeededDraws
from dspark.speculation.sampling import Sampling
from tiny import VOCAB, tiny_drafter, tiny_llama, tiny_target

TARGET = tiny_target()
ROUNDED = [
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not can_tile(), reason="no bf16 (AVX512_BF16, AMX)")),
    pytest.param(torch.int16, marks=pytest.mark.skipif(not can_count(), reason="no 8-bit products (VNNI)")),
]
PRUNED = {"draft_ids": tuple(range(0, VOCAB, 2))}
HEADLESS = {"markov_rank": 0, "enable_confidence_head": False}  # DFlash
WAYS = {
    "whole": {},
    "pruned": PRUNED,
    "silent": {"enable_confidence_head": False},
    "gated": {"markov_head_type": "gated", "markov_rank": 32},
    "rnn": {"markov_head_type": "rnn", "markov_rank": 32},
    "headless": HEADLESS,
    "headless, pruned, sure": PRUNED | {"markov_rank": 0},
}


def made(packed: bool, rounded: bool = False, tiled: bool = False, **changes: object) -> DSparkDrafter:
    drafter = tiny_drafter(TARGET, **changes)
    for name, parameter in drafter.named_parameters():  # fresh norms are ones, which would hide an order
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    if rounded:
        drafter.round_to_bytes()
    if packed:
        drafter.pack(torch.bfloat16 if tiled else None)
        assert drafter.compiled is not None and drafter.program is not None
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
            blocks.settle_all()
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


@torch.inference_mode()
def test_compiled_kernels_give_the_modules_numbers() -> None:
    expected = filled(DRAFTERS["modules"], TABLES).hidden(ANCHORS, TABLES)
    found = filled(DRAFTERS["compiled"], TABLES).hidden(ANCHORS, TABLES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Rotated by half an angle more, or seeing one row less, they would not.
    elsewhere = [BlockTable(table.blocks, max(0, table.length - 1)) for table in TABLES]
    assert not torch.allclose(filled(DRAFTERS["compiled"], TABLES).hidden(ANCHORS, elsewhere), expected, atol=1e-3)


@torch.inference_mode()
def test_context_rows_that_are_no_whole_vectors_are_the_modules_numbers() -> None:
    """Keys and values of a position: 16 numbers, where a vector may hold 32."""
    modules, packed = (
        tiny_drafter(TARGET, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1) for _ in range(2)
    )
    packed.pack()
    found, expected = (filled(each, TABLES).hidden(ANCHORS, TABLES) for each in (packed, modules))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("changes", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_drafts_of_a_program_are_those_drawn_slot_by_slot(sampled: bool, changes: dict[str, object]) -> None:
    """Tokens, laws and confidence to the bit, of one request or many, of whole blocks or shorter ones."""
    blocks = filled(made(True, **changes), TABLES)
    settings = [Sampling(1.0), Sampling(0.7, top_p=0.8), Sampling(3.0), Sampling(0.2, top_p=0.9)]
    chosen = settings if sampled else [Sampling()] * 4
    rows = [Running(Request("r", [a], s, a, 8), SeededDraws(a), 8) for a, s in zip(ANCHORS, chosen, strict=True)]
    for row, table in zip(rows, TABLES, strict=True):
        row.table = table
    seen, chances = set(), set()
    for some in ([0], [1, 3], [0, 1, 2, 3]):
        for slots in (None, 1, 2):
            chosen = [rows[i] for i in some]
            expected = _slot_by_slot(blocks, chosen, slots, print)
            found = _as_program(blocks, chosen, slots, print)
            assert [draft.tokens for draft in found] == [draft.tokens for draft in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours.probs is None) == (theirs.probs is None) == (not sampled)
                if sampled:
                    assert torch.equal(ours.probs, theirs.probs) and ours.support is theirs.support
                    drawn = replace(ours, drawn=None)
                    assert list(ours.drawn) == _drawn_from(drawn, ours.tokens)
                    chances |= {*ours.drawn}
                    assert _drawn_from(ours, ours.tokens[:1]) == _drawn_from(drawn, ours.tokens[:1])
                assert ours.confidence == theirs.confidence and ours.peaks == theirs.peaks
                assert (ours.confidence == ours.peaks) == (blocks.drafter.confidence_head is None)
            seen |= {tuple(draft.tokens) for draft in found}
    assert len({tokens[:1] for tokens in seen}) > 1, "drafts that never differ show nothing"
    assert len(chances) > 4 or not sampled


@torch.inference_mode()
def test_a_draft_of_broken_numbers_says_so_and_leaves_the_others_alone() -> None:
    chance = Chance([Sampling(1.0)] * 4, torch.full((DRAFTERS["compiled"].config.block_size, 4), 0.5).double())
    for drawn in (None, chance):
        blocks = filled(DRAFTERS["compiled"], TABLES)
        expected = blocks.draft(ANCHORS, TABLES, chance=drawn)
        blocks.cache.both(1)[:, TABLES[2].blocks[0] * 32 + 4] = torch.nan
        found = blocks.draft(ANCHORS, TABLES, chance=drawn)
        peaks_RK, others = torch.tensor(found.peaks), [0, 1, 3]
        assert peaks_RK[others].isfinite().all() and peaks_RK[2].isnan().all()
        assert all(0 <= token < 64 for tokens in found.ids for token in tokens)
        assert [found.ids[i] for i in others] == [expected.ids[i] for i in others]
        if found.p_KRV is not None and expected.p_KRV is not None:
            assert torch.equal(found.p_KRV[:, others], expected.p_KRV[:, others])
        blocks.cache.mend(TABLES[2].blocks)
        assert torch.tensor(blocks.draft(ANCHORS, TABLES, chance=drawn).peaks).isfinite().all()


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
    assert drafter.compiled is None and drafter.program is None and len(drafter.layers) == 2


def test_a_packed_drafter_may_read_its_weights_as_bytes() -> None:
    """Every product of the backbone is of bytes then; its hidden states are the exact ones, rounding apart."""
    exact, rounded = (made(True, each, intermediate_size=64) for each in (False, True))
    assert exact.compiled is not None and rounded.compiled is not None
    assert "int8" not in bytes_by_form(exact.compiled) and set(bytes_by_form(rounded.compiled)) == {"int8"}
    with torch.inference_mode():
        found, expected = (filled(each, TABLES).hidden(ANCHORS, TABLES) for each in (rounded, exact))
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("rows", ROUNDED)
@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn"])
def test_a_drafter_may_round_rows_of_its_products(head: str, rows: torch.dtype) -> None:
    """Every product does; a request's drafts are the same bits in any company, and nearly the exact ones."""
    sizes: dict[str, object] = {"hidden_size": 64, "intermediate_size": 96}
    sizes |= {"markov_rank": 32, "markov_head_type": head}
    target = tiny_target(tiny_llama(hidden_size=64, intermediate_size=96))
    exact, other = (tiny_drafter(target, **sizes) for _ in range(2))
    exact.pack()
    if rows == torch.int16:
        other.round_to_bytes()
    other.pack(rows)
    assert other.program is not None
    forms, expected_forms = set(bytes_by_form(other)), {torch.bfloat16: {"bfloat16"}, torch.int16: {"int8"}}
    assert expected_forms[rows] <= forms, "the borrowed head is in no blocks here"
    with torch.inference_mode():
        together, expected = (_drafts_of(each, TABLES) for each in (other, exact))
        alone = [_drafts_of(other, [table], [anchor]) for table, anchor in zip(TABLES, ANCHORS, strict=True)]
    for i, each in enumerate(alone):
        assert torch.equal(each[:, 0], together[:, i])
    assert 0 < (together - expected).norm() < 0.05 * expected.norm()


def _drafts_of(drafter: DSparkDrafter, tables: Sequence[BlockTable], anchors: Sequence[int] = ANCHORS) -> Tensor:
    """What their tokens are drawn from ``[K, R, V_d]``."""
    width = drafter.config.taps_width
    blocks = DrafterBlocks(drafter, 8, 32)
    for table in tables:
        rows = BlockTable(table.blocks).rows(table.length, 32)
        given = torch.randn(table.length, width, generator=torch.Generator().manual_seed(table.blocks[0]))
        if rows:
            blocks.extend(given, torch.arange(len(rows)), torch.tensor(rows))
    u_KR = torch.full((drafter.config.block_size, len(anchors)), 0.5, dtype=torch.float64)
    p_KRV = blocks.draft(anchors, tables, None, Chance([Sampling(1.0)] * len(anchors), u_KR)).p_KRV
    assert p_KRV is not None
    return p_KRV


def test_rounding_leaves_a_drafter_alone_that_runs_its_modules(no_kernels: None) -> None:
    drafter, before = tiny_drafter(TARGET), tiny_drafter(TARGET).state_dict()
    drafter.round_to_bytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in drafter.state_dict().items())
