"""Checkpoints: what is saved comes back bit by bit, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspark.drafters import tensors as tensors_module
from dspark.drafters.checkpoint import load_drafter, read_identity, read_survival, save_drafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends


@pytest.fixture
def saved(tmp_path, make_drafter, identity):
    """A pruned native checkpoint and the drafter in it."""
    drafter = make_drafter(draft_ids=(2, 3, 8, 40))
    save_drafter(tmp_path / "drafter", drafter, identity, {"steps": 3})
    return tmp_path / "drafter", drafter


@pytest.fixture
def ends(make_drafter):
    full = make_drafter()
    return Ends(full.embedding, full.head)


@pytest.fixture
def deepspec(tmp_path, golden):
    """A writable copy of the golden folder, its target and the target's matrices."""
    folder = Path(shutil.copytree(golden, tmp_path / "deepspec"))
    frozen = load_file(folder / "model.safetensors")
    target = ModelIdentity("golden", "Qwen3ForCausalLM", 32, 96, 6, "", "", "")
    return folder, target, Ends(frozen["embed_tokens.weight"], frozen["lm_head.weight"])


def _edit_config(folder: Path, **changes):
    values = json.loads((folder / "config.json").read_text())
    values = {name: value for name, value in (values | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))


def _edit_tensors(folder: Path, **changes):
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({n: t.clone() for n, t in tensors.items() if t is not ...}, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draft_ids", [None, (0, 2, 3, 40, 49)])
def test_round_trip_is_exact(tmp_path, make_drafter, identity, ends, greedy, dtype, draft_ids):
    drafter = make_drafter(draft_ids=draft_ids, rope_theta=1e5, rms_norm_eps=1e-5).to(dtype)
    save_drafter(tmp_path / "new", drafter, identity, {"recipe": "tiny"})
    state = torch.get_rng_state()
    again = load_drafter(tmp_path / "new", identity, ends, dtype)
    assert torch.equal(state, torch.get_rng_state()), "loading must not disturb anybody's randomness"
    assert again.config == drafter.config
    assert not again.training
    for (name, mine), (_, theirs) in zip(drafter.state_dict().items(), again.state_dict().items(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), name
    taps = torch.randn(5, drafter.config.taps_width)
    first, second = (DSparkState(d).draft([1, 2, 3, 4, 5, 6], taps, greedy([])) for d in (drafter, again))
    assert first.tokens == second.tokens and first.confidence == second.confidence


def test_the_share_of_accepted_drafts_is_read_where_it_was_measured(tmp_path, make_drafter, identity):
    drafter = make_drafter()

    def saved(validation):
        save_drafter(tmp_path / "one", drafter, identity, {"validation": validation} if validation else {})
        return read_survival(tmp_path / "one")

    known = {"greedy_acceptance": [0.5, 0.5], "conditional_acceptance": [0.1, 0.1], "blocks": 3}
    assert saved(known) == [0.5, 0.25]
    assert saved({"conditional_acceptance": [0.5, 0.2], "blocks": 3}) == [0.5, 0.1]
    for unknown in (known | {"blocks": 0}, known | {"greedy_acceptance": [None, 2.0]}, ["a list"], {}):
        assert saved(unknown) == [], unknown
    assert read_survival(tmp_path / "nowhere") == []


def test_a_native_folder_holds_what_is_trained_and_who_it_is_for(saved, identity):
    folder, drafter = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop("d2t").tolist() == [2, 2, 6, 37]
    assert tensors.keys() == drafter.state_dict().keys()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["training"] == {"steps": 3} and manifest["version"]
    assert read_identity(folder) == identity
    assert json.loads((folder / "config.json").read_text())["draft_vocab_size"] == 4


def test_deepspec_names_are_ours_plus_the_two_frozen_matrices(deepspec):
    folder, target, ends = deepspec
    drafter = load_drafter(folder, target, ends, torch.float32)
    theirs = load_file(folder / "model.safetensors")
    assert theirs.keys() - drafter.state_dict().keys() == {"embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in drafter.state_dict().items())
    assert torch.equal(drafter.head, theirs["lm_head.weight"])


def test_a_deepspec_drafter_uses_its_own_matrices_and_warns_where_they_are_others(deepspec):
    folder, target, ends = deepspec
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_drafter(folder, target, ends, torch.bfloat16)
    other = Ends(ends.embedding, ends.head + 1)
    with pytest.warns(UserWarning, match="copy of the head is not that of the target golden"):
        drafter = load_drafter(folder, target, other, torch.float32)
    assert torch.equal(drafter.head, ends.head)


def test_other_weights_of_the_same_target_are_a_warning_that_names_both(saved, identity, ends):
    other = dataclasses.replace(identity, name="org/tuned", weights_hash="different")
    with pytest.warns(UserWarning, match=r"org/tiny \(weights weightsweigh\).*org/tuned \(weights different"):
        load_drafter(saved[0], other, ends, torch.float32)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "architecture",
            "OtherForCausalLM",
            "architecture TinyForCausalLM, but org/tiny has OtherForCausalLM",
        ),
        ("hidden_size", 48, "hidden size 24"),
        ("vocab_size", 51, "vocabulary size 50"),
        ("num_layers", 7, "number of layers 6"),
        ("config_hash", "x", "configuration hash config"),
        ("tokenizer_hash", "x", "tokenizer hash tokenizer"),
    ],
)
def test_another_target_is_refused(saved, identity, ends, field, value, words):
    with pytest.raises(UserError, match=words):
        load_drafter(saved[0], dataclasses.replace(identity, **{field: value}), ends, torch.float32)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vocab_size", 97, "vocab_size 96, but golden has 97"),
        ("hidden_size", 64, "hidden_size 32, but golden has 64"),
        ("num_layers", 5, "num_target_layers 6, but golden has 5"),
    ],
)
def test_a_deepspec_drafter_of_another_size_is_refused(deepspec, field, value, words):
    folder, target, ends = deepspec
    with pytest.raises(UserError, match=words):
        load_drafter(folder, dataclasses.replace(target, **{field: value}), ends, torch.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Gemma4DSparkModel"]}, r"Gemma4DSparkModel.*expected \['Qwen3DSparkModel'\]"),
        ({"architectures": ["DSparkSpeculator"]}, "DSparkSpeculator"),
        ({"model_type": "gemma4_text"}, "model_type is 'gemma4_text'"),
        ({"markov_head_type": "lstm"}, "markov_head_type is 'lstm', which is not supported.*vanilla, gated, rnn"),
        ({"markov_head_type": "gated"}, r"missing: markov_head.gate_proj.bias"),
        ({"markov_rank": 0}, r"unexpected: markov_head.markov_w1.weight"),
        ({"block_size": ...}, "lacks block_size"),
        ({"target_layer_ids": [0, 2, 5]}, "last one's output"),
        ({"mask_token_id": 96}, "mask_token_id is 96"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'default'"),
        ({"rope_parameters": None, "rope_theta": None}, "rope_theta is None"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": "32"}, "hidden_size is '32'; expected a whole number"),
        ({"draft_vocab_size": 40}, "no d2t"),
        ({"intermediate_size": 65}, r"gate_proj.weight \[64, 32\] \(expected \[65, 32\]\)"),
        ({"num_hidden_layers": 1, "layer_types": None}, "unexpected: layers.1"),
        ({"num_hidden_layers": 3, "layer_types": None}, "missing: layers.2"),
        ({"enable_confidence_head": ...}, "unexpected: confidence_head.proj.bias"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(deepspec, changes, words):
    folder, target, ends = deepspec
    _edit_config(folder, **changes)
    with pytest.raises(UserError, match=words) as refusal:
        load_drafter(folder, target, ends, torch.float32)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fc.weight": ...}, r"missing: fc.weight \[32, 96\]"),
        ({"lm_head.weight": ...}, "missing: lm_head.weight"),
        ({"lm_head.weight": torch.zeros(95, 32)}, r"lm_head.weight \[95, 32\] \(expected \[96, 32\]\)"),
        ({"markov_head.gate_proj.bias": torch.zeros(8)}, r"unexpected: markov_head.gate_proj.bias \[8\]"),
        ({"norm.weight": torch.zeros(31)}, r"norm.weight \[31\] \(expected \[32\]\)"),
        ({"lm_head.weight": ..., "embed_tokens.weight": ...}, "manifest.json: can't be read"),
        ({"d2t": torch.zeros(96, dtype=torch.int64)}, "d2t for 96 ids"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(deepspec, changes, words):
    folder, target, ends = deepspec
    _edit_tensors(folder, **changes)
    with pytest.raises(UserError, match=words):
        load_drafter(folder, target, ends, torch.float32)


@pytest.mark.parametrize(
    ("d2t", "words"),
    [
        (torch.tensor([2, 2, 6, 47]), "ids run from 2 to 50"),
        (torch.tensor([2, 0, 6, 37]), "id 1 follows 2"),
        (torch.tensor([2.0, 2, 6, 37]), "d2t is torch.float32"),
        (torch.tensor([2, 2, 6]), "d2t for 3 ids"),
    ],
)
def test_a_damaged_draft_vocabulary_is_refused(saved, identity, ends, d2t, words):
    _edit_tensors(saved[0], d2t=d2t)
    with pytest.raises(UserError, match=words):
        load_drafter(saved[0], identity, ends, torch.float32)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, identity, ends, kept):
    weights = saved[0] / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_drafter(saved[0], identity, ends, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(saved, identity, ends, name):
    (saved[0] / name).unlink()
    with pytest.raises(UserError, match=name):
        load_drafter(saved[0], identity, ends, torch.float32)


def test_a_missing_folder_is_named(tmp_path, identity, ends):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_drafter(tmp_path / "nowhere", identity, ends, torch.float32)


def test_a_full_disk_leaves_the_old_checkpoint(saved, make_drafter, identity, ends, monkeypatch):
    folder, drafter = saved

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors_module, "_write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        save_drafter(folder, make_drafter(seed=5), identity)
    again = load_drafter(folder, identity, ends, torch.float32)
    assert torch.equal(again.fc.weight, drafter.fc.weight)
    assert [path.name for path in folder.parent.iterdir()] == ["drafter"]


def test_a_packed_drafter_is_not_saved(tmp_path, make_drafter, identity):
    drafter = make_drafter()
    drafter.pack()
    with pytest.raises(UserError, match="the drafter to save: .*missing: .*fc.weight"):
        save_drafter(tmp_path / "packed", drafter, identity)
    assert not (tmp_path / "packed").exists()
