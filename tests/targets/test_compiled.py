"""All layers as one program: the modules' own numbers to the bit, and only where that is so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_families import FAMILIES, TEXTS, model_of, reference
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dspark.kernels.program import Program
from dspark.kernels.rows import copy_call
from dspark.kernels.tiles import can_tile
from dspark.kernels.whole import can_count
from dspark.nn import shelf as shelves
from dspark.nn.forms import smallest
from dspark.targets.compiled import FEW_ROWS, CompiledSteps, _StepProgram
from dspark.targets.model import Forward, Target
from dspark.targets.ragged import RaggedBatch
from dspark.targets.session import TargetSession
from tiny import VOCAB, tiny_llama, tiny_target

SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4)
# The others have scaled residuals, or modules that are not compiled.
WITH_PROGRAM = {"Llama", "Mistral", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3"}


def step(target: Target, rows: int, compiled: bool, taps: tuple[int, ...] = (-1, 1, 3)) -> tuple[Forward, list[Tensor]]:
    """A first step of a fresh cache, by the program or by the modules, and what it left in the cache."""
    program = target._compiled
    assert program is not None
    cache = target.new_cache(2, 200)
    ids = torch.randint(0, VOCAB, (rows,), generator=torch.Generator().manual_seed(rows))
    counts = [rows // 3, rows - rows // 3]
    batch = RaggedBatch(cache, [t for t, n in zip(cache.tables(), counts, strict=True) if n], [n for n in counts if n])
    try:
        target._compiled = program if compiled else None
        with torch.inference_mode():
            return target.forward(ids, batch, taps), [*cache.keys, *cache.values]
    finally:
        target._compiled = program


def same(a: tuple[Forward, list[Tensor]], b: tuple[Forward, list[Tensor]]) -> bool:
    assert a[0].features_TF is not None and b[0].features_TF is not None
    pairs = [(a[0].hidden_TD, b[0].hidden_TD), (a[0].features_TF, b[0].features_TF), *zip(a[1], b[1], strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_a_program_where_it_is_built_so(family: str) -> None:
    assert (tiny_target(model_of(family))._compiled is not None) == (family in WITH_PROGRAM)


@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 4}, {"attention_bias": True, "mlp_bias": True}], ids=str
)
def test_the_program_gives_the_modules_numbers_to_the_bit(changes: dict[str, Any]) -> None:
    model = tiny_llama(**SIZES | changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    target = tiny_target(model)
    for rows in (1, 2, 3, 5, 8, 31, FEW_ROWS, 190):
        assert same(step(target, rows, True), step(target, rows, False)), rows
    steps = [step(target, 4, True, taps)[0] for taps in ((), (0,), (2, 0), (3,))]
    assert steps[0].features_TF is None
    assert all(torch.equal(each.hidden_TD, steps[0].hidden_TD) for each in steps)


@pytest.mark.parametrize("family", ["Gemma 2", "Gemma 3"])
def test_what_gemma_adds_is_normed_and_its_kinds_of_layers_turn_at_their_own_speeds(family: str) -> None:
    target = tiny_target(model_of(family))
    for rows in (1, 3, 8, FEW_ROWS, 90):
        assert same(step(target, rows, True), step(target, rows, False)), rows
    rotations = target._rotations
    assert len(rotations) == (2 if family == "Gemma 3" else 1)
    if family == "Gemma 3":
        target._rotations = rotations[::-1]
        assert not same(step(target, 8, True), step(target, 8, False)), "control"


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_an_id_that_there_is_not_is_refused_before_it_is_looked_up(wrong: int) -> None:
    target = tiny_target(**SIZES)
    cache = target.new_cache(1, 200)
    with pytest.raises(IndexError, match=f"the target has 0 to {VOCAB - 1}"):
        target.forward(torch.tensor([3, wrong, 4]), RaggedBatch(cache, cache.tables(), [3]))


def test_old_programs_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 32
    monkeypatch.setattr(shelves, "KEPT", kept)
    target = tiny_target(**SIZES)
    assert target._compiled is not None
    shelf, cache = target._compiled._shelf, target.new_cache(1, 200)
    before = len(shelf._known)
    for rows in (FEW_ROWS, *range(1, kept + 9)):
        target.forward(torch.arange(3, 3 + rows) % VOCAB, RaggedBatch(cache, cache.tables(), [rows]))
    assert [rows for rows, _ in shelf._known[cache]] == list(range(9, kept + 9))
    rooms = sum(room.nbytes for room in shelf._rooms._kept.values())
    target.forward(torch.arange(3, 3 + kept), RaggedBatch(cache, cache.tables(), [kept]))
    assert sum(room.nbytes for room in shelf._rooms._kept.values()) == rooms, "programs share their rooms"
    del cache
    assert len(shelf._known) <= before, "a program goes with its cache, whose memory others may get"


@pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")
def test_steps_of_all_sizes_share_one_room_for_rows_in_tiles() -> None:
    target = tiny_target(tiny_llama(**SIZES), rounding=torch.bfloat16)
    assert target._compiled is not None and target.rounds
    shelf, cache, sizes = target._compiled._shelf, target.new_cache(1, 200), set()
    for rows in (3, 20, 40, 64):
        target.forward(torch.arange(3, 3 + rows) % VOCAB, RaggedBatch(cache, cache.tables(), [rows]))
        sizes.add(sum(room.nbytes for room in shelf._rooms._kept.values()))
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "rounding",
    [
        None,
        pytest.param(torch.int16, marks=pytest.mark.skipif(not can_count(), reason="no 8-bit products (VNNI)")),
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not can_tile(), reason="no bf16 products")),
    ],
)
def test_one_program_is_for_all_long_steps(rounding: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order, and it gives the numbers that a program for their size alone gives."""
    made, init = [], _StepProgram.__init__

    def counted(own: _StepProgram, steps: CompiledSteps, rows: int, *rest: Any) -> None:
        made.append(rows)
        init(own, steps, rows, *rest)

    monkeypatch.setattr(_StepProgram, "__init__", counted)
    target = tiny_target(tiny_llama(**SIZES), rounding=rounding)
    cache = target.new_cache(1, 200)
    steps = [(70, 3), (65, 0), (190, 3), (66, 0), (190, 0), (191, 0), (100, 0), (65, 0), (3, 1), (128, 0)]
    for (rows, new), mode in zip(steps, (True, False) * 5, strict=True):  # 190 are more than there was room for
        ids = torch.randint(0, VOCAB, (rows,), generator=torch.Generator().manual_seed(rows))
        made.clear()
        with torch.inference_mode(mode):
            found = target.forward(ids, RaggedBatch(cache, cache.tables(), [rows]), (1, 3))
        assert made == [rows - less for less in range(new)]
        alone = target.new_cache(1, 200)
        expected = target.forward(ids, RaggedBatch(alone, alone.tables(), [rows]), (1, 3))
        assert torch.equal(found.hidden_TD, expected.hidden_TD)
        assert found.features_TF is not None and expected.features_TF is not None
        assert torch.equal(found.features_TF, expected.features_TF)
        assert all(torch.equal(a[:, :rows], b[:, :rows]) for a, b in zip(cache.keys, alone.keys, strict=True))


def test_control_numbers_that_do_not_grow_evenly_are_no_program_for_all() -> None:
    kernel, _ = copy_call(*torch.zeros(2, 1, 64))
    programs = [Program([(kernel, (number, 5))]) for number in (9, 7, 4)]
    with pytest.raises(AssertionError, match="does not grow evenly"):
        programs[0].by_row(programs[1:])
    assert programs[0].by_row([programs[1], Program([(kernel, (5, 5))])]).tolist() == [0, 2, 0]


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1])
def test_many_rows_of_texts_in_a_hurry_are_the_modules(rows: int) -> None:
    target = tiny_target(**SIZES)
    assert target._compiled is not None
    cache = target.new_cache(1, 200)
    cache.exact = False
    batch = RaggedBatch(cache, cache.tables(), [rows])
    assert batch.plan.hurried
    target.forward(torch.arange(3, 3 + rows) % VOCAB, batch)
    assert (cache in target._compiled._shelf._known) == (rows == FEW_ROWS)


def test_a_program_made_in_inference_mode_runs_outside_it_too() -> None:
    target = tiny_target(**SIZES)
    cache = target.new_cache(2, 20)
    ids, found = torch.arange(3, 7), []
    for table, mode in zip(cache.tables(), (True, False), strict=True):
        with torch.inference_mode(mode):
            found.append(target.forward(ids, RaggedBatch(cache, [table], [len(ids)])).hidden_TD)
    assert torch.equal(*found) and found[0].is_inference() and not found[1].is_inference()


def test_threads_take_turns() -> None:
    target = tiny_target(**SIZES)

    def one(rows: int) -> Tensor:
        cache = target.new_cache(1, 200)
        ids = torch.randint(0, VOCAB, (rows,), generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            return target.forward(ids, RaggedBatch(cache, cache.tables(), [rows])).hidden_TD

    sizes = [1, 2, 3, 2] * 20
    expected = [one(rows) for rows in sizes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, sizes))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Doubled(LlamaDecoderLayer):
    """A layer with the children of a Llama's, which does something else with them."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        out: Tensor = super().forward(hidden_states, *arguments, **settings)
        return out * 1.0001


def test_control_a_layer_that_does_more_keeps_its_modules() -> None:
    model, again = tiny_llama(**SIZES), tiny_llama(**SIZES)
    for each in (model, again):
        each.model.layers[2].__class__ = Doubled
    target = tiny_target(model)
    assert target._compiled is None
    found = TargetSession(target, 40).extend(TEXTS[0].tolist(), 40).logits_NV
    torch.testing.assert_close(found, reference(again, TEXTS[0]), rtol=1e-4, atol=1e-4)


def test_no_thread_runs_ahead_in_a_program() -> None:
    made = torch.Generator().manual_seed(0)
    weights = [smallest(torch.randn(64, 64, generator=made) / 8) for _ in range(30)]
    x = torch.randn(3, 64, generator=made)
    expected = x
    for weight in weights:
        expected = weight(expected)
    rooms = [x, *(torch.empty(3, 64) for _ in weights)]
    program = Program([w.call(a, b, None, None) for w, a, b in zip(weights, rooms, rooms[1:], strict=False)])
    for _ in range(200):
        for room in rooms[1:]:
            room.fill_(torch.nan)
        program.run()
        assert torch.equal(rooms[-1], expected)
    rooms[-1].fill_(0.0)
    program.run(0, 29)
    assert not rooms[-1].any(), "a part of a program is a part"
