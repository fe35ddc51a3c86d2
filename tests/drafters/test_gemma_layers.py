"""Draft layers of Gemma 3's kind: the target's own layers where they start from them, packed or not, on disk or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from dspark.drafters.blocks import DrafterBlocks
from dspark.drafters.checkpoint import CONFIG, load_drafter, save_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable
from dspark.nn.layer import DraftLayer
from dspark.nn.rope import rotary
from dspark.nn.visibility import WHOLE_CONTEXT
from dspark.targets.model import Target
from dspark.training.recipe import Recipe
from dspark.training.start import new_drafter
from tiny import VOCAB, tiny_target

LAYERS = ["full_attention", "sliding_attention", "full_attention"]
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    layer_types=LAYERS,
    sliding_window=6,
    query_pre_attn_scalar=20,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)


def gemma() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.float().eval()


def drafter_for(target: Target, initial: str = "target") -> DSparkDrafter:
    shape = {"layers": 1, "block_size": 4, "markov_rank": 8, "draft_vocab_size": 32, "initial": initial}
    shape |= {"target_layer_ids": [0, 1], "mask_token_id": 4}
    drafter = new_drafter(Recipe.model_validate({"data": {"responses": ["x"]}, "drafter": shape}), target, [])
    assert isinstance(drafter, DSparkDrafter)
    torch.nn.init.normal_(drafter.markov_head.markov_w2.weight, std=0.5)
    return drafter.eval()


@torch.no_grad()
def last_row(layer: DraftLayer, x_Sd: Tensor, theta: float) -> Tensor:
    """What the layer makes of the last row, the rows before it as context."""
    positions = torch.arange(len(x_Sd))
    before, *_ = layer.norms
    context = layer.self_attn.context(before(x_Sd[None, :-1]), rotary(positions[None, :-1], 8, theta))
    at = rotary(positions[None, None, -1:], 8, theta)
    return layer(x_Sd[None, None, -1:], at, context, WHOLE_CONTEXT)[0, 0, 0]


def test_a_draft_layer_that_starts_as_gemmas_is_gemmas() -> None:
    model, drafter = gemma(), drafter_for(tiny_target(gemma(), pack=False))
    theta, x_Sd = drafter.config.rope_theta, torch.randn(9, 32)
    assert theta == model.config.rope_parameters["full_attention"]["rope_theta"] != 10000
    model.set_attn_implementation("eager")
    angles = model.model.rotary_emb(x_Sd, torch.arange(9)[None], "full_attention")
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        expected = model.model.layers[2](x_Sd[None], position_embeddings=angles, attention_mask=mask)[0, -1]
    (layer,) = drafter._draft_layers()
    assert_close(last_row(layer, x_Sd, theta), expected, rtol=1e-4, atol=1e-4)
    layer.self_attn.q_norm.weight.data *= 20**0.5 / 8**0.5  # control: the scale of scores as if it were D^-0.5
    assert not torch.allclose(last_row(layer, x_Sd, theta), expected, rtol=1e-2, atol=1e-2)


def test_context_and_output_begin_with_gemmas_own_norms() -> None:
    model, drafter = gemma(), drafter_for(tiny_target(gemma(), pack=False))
    assert_close(drafter.norm.weight, 1 + model.model.norm.weight)
    assert_close(drafter.hidden_norm.weight, 1 + model.model.layers[2].input_layernorm.weight)


@torch.inference_mode()
def test_a_packed_gemma_drafter_drafts_as_its_modules_do() -> None:
    found = []
    for packed in (False, True):
        drafter = drafter_for(tiny_target(gemma(), pack=False))
        assert drafter.embedding_scale == pytest.approx(32**0.5)
        if packed:
            drafter.pack()
            assert drafter.compiled is not None and drafter.program is not None
        blocks = DrafterBlocks(drafter, 2, 32)
        features = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
        blocks.extend(features, torch.arange(9), torch.arange(9))
        found.append(blocks.hidden([5], [BlockTable([0], 9)]))
        if packed:
            begun, previous = blocks.begin([5], [BlockTable([0], 9)]), torch.tensor([5])
            for token in blocks.draft([5], [BlockTable([0], 9)]).ids[0]:
                previous = drafter.support[begun.logits(previous).argmax(dim=-1)]
                assert previous.item() == token
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_a_checkpoint_says_what_its_layers_are_and_comes_back(tmp_path: Path) -> None:
    target = tiny_target(gemma(), pack=False)
    drafter, folder = drafter_for(target), tmp_path / "drafter"
    save_drafter(folder, drafter, target.identity)
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert (values["architectures"], values["model_type"]) == (["Gemma3DSparkModel"], "gemma3_text")
    assert values["hidden_act"] == "gelu_pytorch_tanh"
    again = load_drafter(folder, target.identity, target.ends, torch.float32)
    assert again.config == drafter.config
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), drafter.state_dict().values(), strict=True)
    )
    for change, words in (
        ({"model_type": "qwen3"}, "model_type is 'qwen3', which is not supported; expected 'gemma3_text'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "hidden_act": "silu"}, "pre_feedforward"),
    ):
        (folder / CONFIG).write_text(json.dumps(values | change), encoding="utf-8")
        with pytest.raises(UserError, match=words):
            load_drafter(folder, target.identity, target.ends, torch.float32)
