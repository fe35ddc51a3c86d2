"""Our Eagle3 against the reference implementation's outputs for a tiny checkpoint in its own format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_checkpoints import golden_of
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from dspark.drafters.checkpoint import load_drafter, save_drafter
from dspark.drafters.deepspec import config_from_deepspec, config_to_deepspec
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
GOLDEN = golden_of("eagle3")
INPUTS, EXPECTED = (load_file(GOLDEN / f"{name}.safetensors") for name in ("inputs", "expected"))
TARGET = ModelIdentity("tiny/target", "Qwen3ForCausalLM", 32, 96, 8, "", "", "")


def loaded(packed: bool = False) -> Eagle3Drafter:
    frozen = load_file(GOLDEN / "model.safetensors")
    drafter = load_drafter(GOLDEN, TARGET, Ends(frozen["embed_tokens.weight"], frozen["lm_head.weight"]), torch.float32)
    assert isinstance(drafter, Eagle3Drafter)
    if packed:
        drafter.pack()
        drafter.pack()  # once more changes nothing
    return drafter


@pytest.mark.parametrize("packed", [False, True], ids=["modules", "packed"])
def test_drafting_token_by_token(greedy, packed):
    seen: list[Tensor] = []
    draft = DSparkState(loaded(packed)).draft(INPUTS["ids"][0].tolist(), INPUTS["context"][0], greedy(seen))
    assert draft.tokens == EXPECTED["greedy_tokens"][0].tolist()
    assert_close(torch.stack(seen), EXPECTED["step_logits"][0], **TOLERANCE)
    assert draft.confidence == draft.peaks, "there is no confidence head"


def test_the_causal_pass():
    """What training makes of every position's first step is what the reference leaves before the final norm."""
    drafter, ids = loaded(), INPUTS["ids"]
    rows = ids.shape[1] - 1
    padded = torch.cat((INPUTS["context"], torch.full_like(INPUTS["context"][:, :1], torch.nan)), dim=1)
    anchors = torch.arange(1, rows + 1)[None]
    normed = drafter.taught(padded, ids, ids[:, 1:, None], anchors)[:, :, 0]
    assert_close(normed, drafter.norm(EXPECTED["context_hidden_out"]), **TOLERANCE)


def test_training_follows_the_drafted_tokens_as_decoding_does():
    drafter, ids, rows = loaded(), INPUTS["ids"], INPUTS["ids"].shape[1] - 1
    padded = torch.cat((INPUTS["context"], INPUTS["context"][:, :1]), dim=1)
    previous = torch.cat((ids[:, -1:], EXPECTED["greedy_tokens"][:, :-1]), dim=1)[:, None]
    normed = drafter.taught(padded, ids, previous, torch.tensor([[rows]]))
    assert_close(drafter.base_logits(normed[:, 0]), EXPECTED["step_logits"], **TOLERANCE)


@pytest.mark.parametrize("fault", ["rows", "tokens", "anchor"])
def test_control_a_shifted_pair_is_noticed(greedy, fault):
    ids, context = INPUTS["ids"][0].tolist(), INPUTS["context"][0]
    if fault == "rows":
        context = context.roll(1, dims=0)
    elif fault == "tokens":
        ids = [*ids[1:-1], 0, ids[-1]]
    else:
        ids[-1] = (ids[-1] + 1) % 96
    seen: list[Tensor] = []
    DSparkState(loaded()).draft(ids, context, greedy(seen))
    assert (seen[0] - EXPECTED["step_logits"][0, 0]).abs().max() > 1e-2


def test_the_configuration_is_deepspecs_to_the_letter():
    values = json.loads(Path(GOLDEN / "config.json").read_text())
    config = config_from_deepspec(values)
    assert (config.kind, config.block_size, config.step_loss_decay) == ("eagle3", 4, 0.8)
    del values["transformers_version"]  # of the program that wrote the file
    del values["target_model_name_or_path"]  # the checkpoint's writer knows it
    assert config_to_deepspec(config, "float32") == values


@pytest.mark.parametrize("draft_ids", [None, (2, 5, 30, 94)], ids=["full", "pruned"])
def test_a_native_checkpoint_comes_back(tmp_path, greedy, draft_ids):
    drafter = loaded()
    if draft_ids is not None:
        frozen = Ends(drafter.embedding, drafter.head)
        smaller = Eagle3Drafter(replace(drafter.config, draft_ids=draft_ids), frozen)
        smaller.load_state_dict(drafter.state_dict())
        drafter = smaller.eval()
    save_drafter(tmp_path / "eagle3", drafter, TARGET)
    assert json.loads((tmp_path / "eagle3" / "config.json").read_text())["target_model_name_or_path"] == "tiny/target"
    again = load_drafter(tmp_path / "eagle3", TARGET, Ends(loaded().embedding, loaded().head), torch.float32)
    assert again.config == drafter.config and not again.training
    first, second = (
        DSparkState(each).draft(INPUTS["ids"][0].tolist(), INPUTS["context"][0], greedy([]))
        for each in (drafter, again)
    )
    assert first.tokens == second.tokens and torch.equal(first.probs, second.probs)
    assert set(first.tokens) <= set(draft_ids or range(96))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2, "layer_types": None}, "num_hidden_layers is 2; eagle3 drafters have 1"),
        ({"ttt_length": None}, "lacks ttt_length; expected the keys of a Qwen3Eagle3Model"),
        ({"target_layer_ids": [0, 2, 3, 4]}, r"fc.weight \[32, 160\] \(expected \[32, 128\]\)"),
        ({"architectures": ["Qwen3DSparkModel"]}, "lacks mask_token_id"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, changes, words):
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "eagle3"))
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words):
        load_drafter(folder, TARGET, Ends(loaded().embedding, loaded().head), torch.float32)
