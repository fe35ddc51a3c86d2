"""Steps of fixed sizes, as a GPU would replay them: the numbers of any other step, whatever their padding repeats."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_families import FAMILIES, TEXTS, largest_difference, model_of, reference
from torch import Tensor

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache
from dspark.speculation.sampling import Sampling
from dspark.targets.captured import CapturedSteps, _Recorded, captured_steps
from dspark.targets.model import Target
from dspark.targets.probe import probe_ids
from dspark.targets.ragged import RaggedBatch
from tiny import VOCAB, tiny_drafter, tiny_target


def captured(target: Target) -> Target:
    """The same, whose small steps are of fixed sizes."""
    ids_T = probe_ids(target.vocab_size)
    target._captured = captured_steps(target._run, target.new_cache(1, len(ids_T)), ids_T, (-1, 0), record=False)
    assert target._captured is not None
    target._compiled = None
    return target


@pytest.mark.parametrize("size", [5, 80])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_steps_of_fixed_sizes_equals_hugging_face(family: str, size: int) -> None:
    expected = [reference(model_of(family), ids) for ids in TEXTS]
    assert largest_difference(captured(tiny_target(model_of(family))), expected, size=size) < 1e-4


def test_control_a_step_laid_out_wrongly_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out = _Recorded.lay_out

    def wrong(self: _Recorded, ids_T: Tensor, batch: RaggedBatch) -> None:
        lay_out(self, ids_T, batch)
        self._blocks_TM[-1] = self._blocks_TM[0]

    expected = [reference(model_of("Llama"), ids) for ids in TEXTS]
    target = captured(tiny_target(model_of("Llama")))
    monkeypatch.setattr(_Recorded, "lay_out", wrong)
    assert largest_difference(target, expected, size=5) > 1e-2


def left(target: Target, counts: Sequence[int]) -> tuple[KVCache, Tensor, Tensor]:
    cache = target.new_cache(8, 4)
    tables = [BlockTable([7, 2, 5]), BlockTable([0, 6, 1])]
    with torch.inference_mode():
        for part in ([3, 6], counts):
            ids_T = torch.randint(3, VOCAB, (sum(part),), generator=torch.Generator().manual_seed(len(counts)))
            some = [table for table, count in zip(tables, part, strict=True) if count]
            found = target.forward(ids_T, RaggedBatch(cache, some, [n for n in part if n]), (-1, 1, 2))
    assert found.features_TF is not None
    return cache, found.hidden_TD, found.features_TF


@pytest.mark.parametrize("counts", [[1, 0], [1, 1], [2, 1], [3, 4], [6, 5]], ids=str)
def test_what_a_step_leaves_is_what_the_modules_leave(counts: list[int]) -> None:
    """Features and cache as well: what is padded writes nowhere else."""
    modules = tiny_target(model_of("Llama"))
    modules._compiled = None
    (cache, *found), (other, *expected) = left(captured(tiny_target(model_of("Llama"))), counts), left(modules, counts)
    pairs = zip([*found, *cache.keys, *cache.values], [*expected, *other.keys, *other.values], strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_larger_steps_run_the_modules() -> None:
    target = tiny_target(model_of("Llama"))
    steps, cache = CapturedSteps(target._run, record=False), target.new_cache(2, 2**13)
    for length, count, fits in ((0, 64, False), (0, 8, True), (2**13 - 4, 9, False)):
        ids_T, table = torch.full((count,), 3), BlockTable([0, 1], length)
        with torch.inference_mode():
            assert (steps.run(ids_T, RaggedBatch(cache, [table], [count]), ()) is not None) == fits
    assert steps.run(torch.full((65,), 3), RaggedBatch(cache, [BlockTable([0])], [65]), ()) is None


def test_drafts_are_verified_in_them_without_changing_a_word() -> None:
    def texts(target: Target, mode: str) -> dict[str, list[int]]:
        requests = [Request(f"{i}", TEXTS[i, : 5 + i].tolist(), Sampling(), i, 24, ignore_stop=True) for i in range(3)]
        drafter = tiny_drafter(target) if mode == "dspark" else None
        engine = Engine(target, requests, Limits(2, 200, block=8), mode, drafter)  # type: ignore[arg-type]
        return {done.request.id: done.output_ids for done in engine.run()}

    plain = texts(tiny_target(), "plain")
    assert texts(captured(tiny_target()), "dspark") == texts(captured(tiny_target()), "plain") == plain


def test_a_model_that_cannot_be_recorded_runs_its_modules(recwarn: pytest.WarningsRecorder) -> None:
    target, ids_T = tiny_target(), probe_ids(VOCAB)
    runs = 0

    def fails(*given: object) -> tuple[Tensor, Tensor | None]:
        nonlocal runs
        runs += 1
        if runs > 1:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return target._run(*given)  # type: ignore[arg-type]

    def differs(*given: object) -> tuple[Tensor, Tensor | None]:
        nonlocal runs
        runs += 1
        hidden_Td, features_TF = target._run(*given)  # type: ignore[arg-type]
        return hidden_Td * runs, features_TF

    with torch.inference_mode():
        for run, said in ((fails, "not permitted"), (differs, "other numbers")):
            runs = 0
            assert captured_steps(run, target.new_cache(1, len(ids_T)), ids_T, (-1,), record=False) is None
            assert said in str(recwarn.pop().message)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_is_replayed_with_other_contents() -> None:
    """Not run yet: there was no GPU."""
    target = tiny_target(model_of("Llama").cuda())
    assert target._captured is not None
    for counts in ([1, 1], [3, 4], [1, 1]):
        found = left(target, counts)
        steps, target._captured = target._captured, None
        expected = left(target, counts)
        target._captured = steps
        for mine, theirs in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
