"""Autoregressive drafters on compiled kernels: the modules' numbers, whole drafts as programs, rows in any company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dspark.decoding.proposer import _as_program, _slot_by_slot, propose
from dspark.decoding.request import Request, Running
from dspark.drafters.chain import ChainDrafter
from dspark.drafters.chain_program import ChainProgram
from dspark.drafters.choice import Chance
from dspark.drafters.pairs import ChainRoom
from dspark.kernels.tiles import can_tile
from dspark.nn.blocks import BlockTable
from dspark.nn.packed import bytes_by_form
from dspark.speculation.draws import SeededDraws
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from tiny import VOCAB, tiny_chain, tiny_llama, tiny_target

TARGET = tiny_target()
WIDE = tiny_target(tiny_llama(hidden_size=64, intermediate_size=96))  # its rows are whole tiles
KINDS = pytest.mark.parametrize("kind", ["eagle3", "mtp"])
needs_bf16 = pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")
TABLES = [BlockTable([3], 9), BlockTable([6, 0], 40), BlockTable([1, 5], 32), BlockTable([2], 1)]
ANCHORS = [5, 17, 60, 0]
PREVIOUS = [ANCHORS, [9, 2, 33, 50], [4, 4, 1, 63]]


def made(
    kind: str, packed: bool, rounded: bool = False, tiled: bool = False, target: Target = TARGET, **changes: object
) -> ChainDrafter:
    drafter = tiny_chain(target, kind, **changes)
    for name, parameter in drafter.named_parameters():  # fresh norms are ones, which would hide which is which
        generator = torch.Generator().manual_seed(len(name))
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
        elif name == "fc.weight":
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    if rounded:
        drafter.round_to_bytes()
    if packed:
        drafter.pack(torch.bfloat16 if tiled else None)
        assert drafter.compiled is not None and isinstance(drafter.program, ChainProgram) and not drafter.layers
    return drafter


@torch.inference_mode()
def filled(drafter: ChainDrafter, tables: Sequence[BlockTable]) -> ChainRoom:
    """A room with random pairs for every position of every table."""
    room, width = drafter.new_room(8, 32), drafter.config.taps_width
    for table in tables:
        generator = torch.Generator().manual_seed(table.blocks[0])
        rows = torch.tensor(BlockTable(table.blocks).rows(table.length, 32))
        features = torch.randn(len(rows), width, generator=generator)
        behind = torch.randint(0, VOCAB, (len(rows),), generator=generator)
        room.extend(features, torch.arange(len(rows)), rows, behind)
    return room


@torch.inference_mode()
def drafted(room: ChainRoom, tables: Sequence[BlockTable], previous: Sequence[Sequence[int]] = PREVIOUS) -> Tensor:
    """Logits ``[K, R, V_d]`` behind given tokens."""
    drafting = room.begin(previous[0], tables, len(previous))
    return torch.stack([drafting.logits(torch.tensor(tokens)) for tokens in previous])


@KINDS
@torch.inference_mode()
def test_compiled_kernels_give_the_modules_numbers(kind: str) -> None:
    modules, compiled = (filled(made(kind, each), TABLES) for each in (False, True))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(compiled.hidden_Sd, modules.hidden_Sd, **close)
    torch.testing.assert_close(compiled.cache.values[0], modules.cache.values[0], **close)
    expected = drafted(modules, TABLES)
    torch.testing.assert_close(drafted(compiled, TABLES), expected, **close)
    torch.testing.assert_close(compiled.cache.values[0], modules.cache.values[0], **close)
    # From a pair before, behind another token or with another hidden state they would not.
    elsewhere = [BlockTable(table.blocks, max(1, table.length - 1)) for table in TABLES]
    assert not torch.allclose(drafted(compiled, elsewhere)[:, :3], expected[:, :3], atol=1e-3)
    assert not torch.allclose(drafted(compiled, TABLES, [[8] * 4, *PREVIOUS[1:]]), expected, atol=1e-3)
    compiled.hidden_Sd.mul_(-1)
    assert not torch.allclose(drafted(compiled, TABLES), expected, atol=1e-3)


@KINDS
def test_a_compiled_draft_is_the_same_to_the_bit_in_any_company(kind: str) -> None:
    drafter = made(kind, True)
    together = drafted(filled(drafter, TABLES), TABLES)
    for i, table in enumerate(TABLES):
        alone = drafted(filled(drafter, [table]), [table], [[tokens[i]] for tokens in PREVIOUS])
        assert torch.equal(alone[:, 0], together[:, i])


@KINDS
@pytest.mark.parametrize("changes", [{}, {"draft_ids": tuple(range(0, VOCAB, 2))}], ids=["whole", "pruned"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_drafts_of_a_program_are_those_drawn_slot_by_slot(kind: str, sampled: bool, changes: dict[str, object]) -> None:
    """Tokens, laws and peaks to the bit, of one request or many, of whole blocks or shorter ones."""
    room = filled(made(kind, True, **changes), TABLES)
    settings = [Sampling(1.0), Sampling(0.7, top_p=0.8), Sampling(3.0), Sampling(0.2, top_p=0.9)]
    rows = running(settings if sampled else [Sampling()] * 4)
    seen = set()
    for some in ([0], [1, 3], [0, 1, 2, 3]):
        for slots in (None, 1, 3):
            chosen = [rows[i] for i in some]
            expected = _slot_by_slot(room, chosen, slots, print)
            found = _as_program(room, chosen, slots, print)
            assert [draft.tokens for draft in found] == [draft.tokens for draft in expected]
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours.probs is None) == (theirs.probs is None) == (not sampled)
                if sampled:
                    assert torch.equal(ours.probs, theirs.probs) and ours.support is theirs.support
                assert ours.peaks == theirs.peaks and ours.confidence == ours.peaks
            seen |= {tuple(draft.tokens) for draft in found}
    assert len({tokens[:1] for tokens in seen}) > 1, "drafts that never differ show nothing"


def running(samplings: Sequence[Sampling]) -> list[Running]:
    rows = [Running(Request("r", [a], s, a, 8), SeededDraws(a), 8) for a, s in zip(ANCHORS, samplings, strict=True)]
    for row, table in zip(rows, TABLES, strict=True):
        row.table = table
    return rows


@torch.inference_mode()
def test_the_core_drafts_by_a_program_where_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    room = filled(made("eagle3", True), TABLES)
    rows = running([Sampling(), Sampling(), Sampling(1.0, top_k=3), Sampling(1.0)])
    ran, run = [], ChainProgram.run

    def noted(self: ChainProgram, anchors: Sequence[int], *more: object) -> object:
        ran.append(list(anchors))
        return run(self, anchors, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ChainProgram, "run", noted)
    drafts = propose(rows, room, lambda row, source: True, print)
    assert ran == [ANCHORS[:2], ANCHORS[3:]]
    assert all(len(draft.tokens) == room.drafter.config.block_size for draft in drafts)


@torch.inference_mode()
def test_a_draft_of_broken_numbers_says_so_and_the_others_are_as_they_were() -> None:
    room = filled(made("eagle3", True), TABLES)
    expected = room.draft(ANCHORS[:2], TABLES[:2]).ids
    room.settle(TABLES)
    room.cache.both(0)[:, TABLES[2].blocks[0] * 32 + 4] = torch.nan
    u_KR = torch.full((room.drafter.config.block_size, 4), 0.5, dtype=torch.float64)
    for chance in (None, Chance([Sampling(1.0)] * 4, u_KR)):
        found = room.draft(ANCHORS, TABLES, chance=chance)
        assert torch.tensor(found.peaks).isnan().any(dim=1).tolist() == [False, False, True, False]
        assert chance is not None or found.ids[:2] == expected
    assert room.draft(ANCHORS[:2], TABLES[:2]).ids == expected


@KINDS
def test_a_bigger_room_holds_the_same_rows(kind: str) -> None:
    table, tokens = BlockTable([0], 20), [[7], [8], [9]]
    small = filled(made(kind, True), [table])
    bigger = small.grown(300)
    assert bigger.cache.size == 300
    assert torch.equal(drafted(bigger, [table], tokens), drafted(small, [table], tokens))


@KINDS
def test_without_kernels_a_packed_drafter_keeps_its_modules(kind: str, no_kernels: None) -> None:
    drafter = tiny_chain(TARGET, kind)
    drafter.pack()
    assert drafter.compiled is None and drafter.program is None and len(drafter.layers) == 1


@KINDS
def test_sizes_that_are_no_whole_vectors_keep_their_modules(kind: str) -> None:
    drafter = tiny_chain(TARGET, kind, head_dim=4)
    drafter.pack()
    assert drafter.compiled is None and drafter.program is None and len(drafter.layers) == 1
    assert drafted(filled(drafter, TABLES), TABLES).isfinite().all()


def test_a_vocabulary_that_is_no_whole_vector_is_drafted_slot_by_slot() -> None:
    modules, packed = (tiny_chain(TARGET, draft_ids=tuple(range(20))) for _ in range(2))
    packed.pack()
    assert packed.compiled is not None and packed.program is None
    found, expected = (drafted(filled(each, TABLES), TABLES) for each in (packed, modules))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@KINDS
def test_a_packed_drafter_may_read_its_weights_as_bytes(kind: str) -> None:
    """Every product of the layer is of bytes then; its logits are the exact ones, rounding apart."""
    exact, rounded = (made(kind, True, each, intermediate_size=64) for each in (False, True))
    assert exact.compiled is not None and rounded.compiled is not None
    assert "int8" not in bytes_by_form(exact.compiled) and set(bytes_by_form(rounded.compiled)) == {"int8"}
    found, expected = (drafted(filled(each, TABLES), TABLES) for each in (rounded, exact))
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


@needs_bf16
@KINDS
def test_a_drafter_beside_a_target_that_rounds_rows_multiplies_as_it_does(kind: str) -> None:
    """Every product is of tiles; a request's drafts are the same bits in any company, and nearly the exact ones."""
    exact, tiled = (made(kind, True, tiled=each, target=WIDE, intermediate_size=96) for each in (False, True))
    assert set(bytes_by_form(tiled)) == {"bfloat16"}
    together, expected = (drafted(filled(each, TABLES), TABLES) for each in (tiled, exact))
    for i, table in enumerate(TABLES):
        alone = drafted(filled(tiled, [table]), [table], [[tokens[i]] for tokens in PREVIOUS])
        assert torch.equal(alone[:, 0], together[:, i])
    assert 0 < (together - expected).norm() < 0.05 * expected.norm()
