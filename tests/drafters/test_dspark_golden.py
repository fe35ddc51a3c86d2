"""Our drafter against the reference implementation's outputs for a tiny checkpoint in its own format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_checkpoints import golden_of
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.state import DSparkState
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=["vanilla", "gated", "rnn", "dflash"])
def golden(request: pytest.FixtureRequest) -> Path:
    return golden_of(request.param)


@pytest.fixture
def drafter(golden: Path) -> DSparkDrafter:
    frozen = load_file(golden / "model.safetensors")
    ends = Ends(frozen["embed_tokens.weight"], frozen["lm_head.weight"])
    target = ModelIdentity("golden", "Qwen3ForCausalLM", 32, 96, 6, "", "", "")
    return load_drafter(golden, target, ends, torch.float32)


@pytest.fixture
def inputs(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "inputs.safetensors")


@pytest.fixture
def expected(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "expected.safetensors")


def _same_confidence(found: Tensor | None, expected: Tensor | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert_close(found, expected[0], **TOLERANCE)


def _committed(rows: int, anchor: Tensor) -> list[int]:
    return [0] * rows + [int(anchor)]


def test_parallel_stage(drafter, inputs, expected):
    rows = inputs["context"].shape[1]
    context = drafter.context_kv(drafter.project(inputs["context"]), torch.arange(rows)[None])
    hidden = drafter.block_hidden(inputs["anchor"], torch.tensor([[rows]]), context)[:, 0]
    assert_close(hidden, expected["hidden"], **TOLERANCE)
    assert_close(drafter.base_logits(hidden), expected["base_logits"], **TOLERANCE)


def test_drafting_a_block(drafter, inputs, expected, greedy):
    seen: list[Tensor] = []
    context = inputs["context"][0]
    draft = DSparkState(drafter).draft(_committed(len(context), inputs["anchor"]), context, greedy(seen))
    assert draft.tokens == expected["greedy_tokens"][0].tolist()
    assert_close(torch.stack(seen), expected["step_logits"][0], **TOLERANCE)
    _same_confidence(
        torch.tensor(draft.confidence) if drafter.confidence_head else None, expected.get("confidence_logits")
    )
    assert draft.support is None
    assert draft.probs.argmax(-1).tolist() == draft.tokens


def test_second_round_on_a_grown_context(drafter, inputs, expected, greedy):
    state, seen = DSparkState(drafter), []
    context, more = inputs["context"][0], inputs["context_more"][0]
    state.draft(_committed(len(context), inputs["anchor"]), context, greedy([]))
    ids = _committed(len(context) + len(more), inputs["anchor2"])
    draft = state.draft(ids, more, greedy(seen))
    prev = torch.tensor([ids[-1], *draft.tokens[:-1]])
    hidden = expected["hidden_round2"][0]
    assert_close(torch.stack(seen), drafter.logits(hidden, prev), **TOLERANCE)
    if drafter.confidence_head is not None:
        assert_close(torch.tensor(draft.confidence), drafter.confidence_logits(hidden, prev), **TOLERANCE)


def test_training_path(drafter, inputs, expected):
    anchors = inputs["train_anchors"]
    hidden = drafter(inputs["train_context"], inputs["train_ids"].gather(1, anchors), anchors)
    prev = expected["train_prev"]
    assert_close(drafter.logits(hidden, prev), expected["train_logits"], **TOLERANCE)
    if drafter.confidence_head is not None:
        assert_close(drafter.confidence_logits(hidden, prev), expected["train_confidence_logits"], **TOLERANCE)
    rows = (anchors[..., None] + torch.arange(drafter.config.block_size)).clamp(max=anchors.max() + 6)
    supervised = expected["train_supervised"].bool()
    last = inputs["train_last_hidden"][0, rows]
    target = last @ drafter.head.T
    assert_close(target[supervised], expected["train_target_logits"][supervised], **TOLERANCE)


@pytest.mark.parametrize("fault", ["rows", "positions", "anchor sees its own row"])
def test_control_a_shifted_context_is_noticed(drafter, inputs, expected, fault):
    context = inputs["context"]
    rows = context.shape[1]
    positions, anchor = torch.arange(rows)[None], torch.tensor([[rows]])
    if fault == "rows":
        context = context.roll(1, dims=1)
    elif fault == "positions":
        positions = positions + 1
    else:
        context = torch.cat((context, inputs["context_more"][:, :1]), dim=1)
        positions = torch.arange(rows + 1)[None]
    kv = drafter.context_kv(drafter.project(context), positions)
    hidden = drafter.block_hidden(inputs["anchor"], anchor, kv, whole_context=True)[:, 0]
    logits = drafter.base_logits(hidden)
    assert (logits - expected["base_logits"]).abs().max() > 1e-2
