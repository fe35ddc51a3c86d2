"""Lean twins stand where they give the same numbers, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import FAMILIES, TEXTS, model_of, reference
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from dspark.evaluation.identity import allowed_gap
from dspark.foundation.errors import UserError
from dspark.kernels.blocks import can_unpack
from dspark.kernels.tiles import can_tile
from dspark.kernels.whole import can_count
from dspark.nn.forms import rounded_to_bytes
from dspark.nn.lean import LeanMLP, LeanNorm, paired, turn
from dspark.targets import rounding
from dspark.targets.lean import LeanAttention
from dspark.targets.model import Target
from dspark.targets.session import TargetSession
from tiny import tiny_llama, tiny_target

# Norms, MLPs and attention modules of each family that have a twin; the others stay Hugging Face's own, and why.
TWINS = {
    "Llama": (9, 4, 4),
    "Mistral": (9, 4, 4),
    "Qwen2": (9, 4, 4),
    "Qwen3": (17, 4, 4),
    "Gemma 2": (17, 4, 4),
    "Gemma 3": (25, 4, 4),
    "Gemma 4": (42, 6, 0),  # values are normed, some layers share them
    "Granite": (9, 4, 4),
    "Cohere 2": (0, 4, 0),  # norms subtract the mean, pairs that rotate are neighbours, some layers rotate nothing
    "gpt-oss": (9, 0, 0),  # experts; cosines of half the width
}


def twins(model: nn.Module) -> tuple[int, int, int]:
    norms, mlps, attention = (
        sum(isinstance(module, kind) for module in model.modules()) for kind in (LeanNorm, LeanMLP, LeanAttention)
    )
    # Attention has its head norms inside.
    return norms, mlps, attention


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_twins_that_fit_it(family: str) -> None:
    model = model_of(family)
    tiny_target(model)
    assert twins(model) == TWINS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_compiled_kernels_a_family_has_the_same_twins(family: str, no_kernels: None) -> None:
    model = model_of(family)
    target = tiny_target(model)
    assert twins(model) == TWINS[family]
    for ids in TEXTS:
        found = TargetSession(target, 40).extend(ids.tolist(), len(ids)).logits_NV
        torch.testing.assert_close(found, reference(model_of(family), ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_a_family_has_the_same_twins_and_is_as_close_as_hugging_face(family: str) -> None:
    exact = [reference(model_of(family), ids) for ids in TEXTS]
    theirs = [reference(model_of(family).bfloat16(), ids) for ids in TEXTS]
    model = model_of(family).bfloat16()
    target = tiny_target(model)
    assert twins(model) == TWINS[family]
    ours = [TargetSession(target, 40).extend(ids.tolist(), len(ids)).logits_NV for ids in TEXTS]
    assert error(ours, exact) < 1.25 * error(theirs, exact)


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The median: an expert chosen otherwise in bf16 moves the largest."""
    return float((torch.stack(found).float() - torch.stack(exact)).abs().median())


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_are_hugging_faces_hidden_states(family: str) -> None:
    model = model_of(family)
    model.set_attn_implementation("eager")
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        states = model(input_ids=TEXTS[:1], use_cache=False, output_hidden_states=True).hidden_states
    session = TargetSession(tiny_target(model), 40, taps := (-1, 0, layers - 2, layers - 1))
    features = session.extend(TEXTS[0].tolist(), 1).features_TF
    expected = torch.cat([states[tap + 1][0] for tap in taps], dim=-1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


class LateAttention(LlamaAttention):
    """As every other until late positions, which it treats in a way of its own."""

    def forward(self, hidden_states: Tensor, *, position_ids: Tensor, **others: Any) -> Any:
        out, weights = super().forward(hidden_states, position_ids=position_ids, **others)
        return out * (1 + (position_ids > 200)[..., None]), weights


class ClippedAttention(LlamaAttention):
    """As every other until what it projects gets large."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Any:
        return super().forward(hidden_states.clamp(-8, 8), **others)


class SquaredNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * super().forward(hidden_states)


class DoubledMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class ClippedMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-40, 40)


@pytest.mark.parametrize(
    ("name", "kind", "left"),
    [
        ("self_attn", LateAttention, (7, 3, 2)),
        ("self_attn", ClippedAttention, (7, 3, 2)),
        ("input_layernorm", SquaredNorm, (6, 3, 3)),
        ("mlp", DoubledMLP, (7, 2, 3)),
        ("mlp", ClippedMLP, (7, 2, 3)),
    ],
)
def test_control_a_module_that_does_something_else_keeps_its_place(
    name: str, kind: type, left: tuple[int, int, int]
) -> None:
    def changed() -> LlamaForCausalLM:
        model = tiny_llama()
        getattr(model.model.layers[1], name).__class__ = kind
        torch.nn.init.normal_(model.model.layers[1].input_layernorm.weight, 1.0, 0.3)
        return model

    model = changed()
    tiny_target(model)
    assert type(getattr(model.model.layers[1], name)) is kind
    assert twins(model) == left


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_turned_pair_is_rotated_halves(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(0)
    heads, angles = torch.randn(5, 3, 8, generator=made).to(dtype), torch.randn(5, 1, 4, generator=made).double()
    first, second = heads.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    expected = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    found = heads[..., paired(8)]
    wide = torch.promote_types(dtype, torch.float32)
    turn(found, torch.complex(cos.to(wide), sin.to(wide)))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found.double(), expected[..., paired(8)], rtol=tolerance, atol=tolerance)


def test_a_tiny_row_shows_the_epsilon() -> None:
    norm = LlamaRMSNorm(16, eps=1e-3)
    rows = torch.randn(3, 16) * torch.tensor([[1.0], [1e-2], [1e-4]])
    torch.testing.assert_close(LeanNorm(norm.weight, 1e-3)(rows), norm(rows).detach())
    assert not torch.allclose(LeanNorm(norm.weight, 1e-6)(rows), norm(rows))


def test_half_precision_rounds_the_weights_once_and_nothing_else() -> None:
    rounded = tiny_llama()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    target = tiny_target(rounding=torch.float16)
    assert set(target.weights) == {"float16"}
    assert target.weights_hash == tiny_target().weights_hash, "a drafter knows its target by the weights of the files"
    expected = reference(rounded, TEXTS[0])
    found = TargetSession(target, 40).extend(TEXTS[0].tolist(), 40).logits_NV
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - reference(tiny_llama(), TEXTS[0])).abs().max() > 1e-4


def test_int8_rounds_matrices_in_groups_and_nothing_else() -> None:
    rounded = tiny_llama(intermediate_size=64)
    for parameter in rounded.parameters():
        if parameter.dim() == 2:
            groups = parameter.data.unflatten(1, (-1, 32))
            scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
            parameter.data = ((groups / scale).round() * scale).flatten(1)
    target = tiny_target(tiny_llama(intermediate_size=64), rounding=torch.int8)
    assert set(target.weights) == {"int8"}
    expected = reference(rounded, TEXTS[0])
    found = TargetSession(target, 40).extend(TEXTS[0].tolist(), 40).logits_NV
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - reference(tiny_llama(intermediate_size=64), TEXTS[0])).abs().max() > 1e-3


@pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")
def test_bfloat16_rounds_weights_and_rows_and_nothing_else() -> None:
    sizes: dict[str, Any] = dict(hidden_size=64, intermediate_size=64, initializer_range=0.1)
    rounded = tiny_llama(**sizes)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    target, exact = tiny_target(tiny_llama(**sizes), rounding=torch.bfloat16), tiny_target(rounded)
    assert (target.precision, exact.precision, target.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    ids = TEXTS[0][:36]

    def logits(of: Target, pieces: list[int]) -> Tensor:
        session = TargetSession(of, 40)
        return torch.cat([session.extend(part.tolist(), len(part)).logits_NV for part in ids.split(pieces)])

    expected = logits(exact, [36])
    apart = (logits(target, [36]) - expected).abs().max() / expected.abs().max()
    assert 1e-6 < apart < 2e-2
    assert torch.equal(logits(target, [1] * 36), logits(target, [36]))
    assert set(target.weights) == {"bfloat16"}


def test_bfloat16_without_instructions_for_it_rounds_weights_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rounding._OF_ROWS, torch.bfloat16, lambda: False)
    rounded = tiny_llama(hidden_size=64)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert rounding.rounds_weights(torch.bfloat16)
    target, exact = tiny_target(tiny_llama(hidden_size=64), rounding=torch.bfloat16), tiny_target(rounded)
    assert (target.precision, target.dtype, target.weights) == (torch.float32, torch.float32, exact.weights)
    ids = TEXTS[0][:36].tolist()
    found, expected = (TargetSession(of, 40).extend(ids, 36).logits_NV for of in (target, exact))
    assert torch.equal(found, expected)
    assert not torch.equal(found, TargetSession(tiny_target(tiny_llama(hidden_size=64)), 40).extend(ids, 36).logits_NV)


@pytest.mark.skipif(not can_tile(), reason="this CPU multiplies no bf16 (AVX512_BF16, AMX)")
def test_bfloat16_keeps_keys_and_values_in_half_the_bytes() -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    narrow, wide = tiny_target(model, rounding=torch.bfloat16), tiny_target()
    caches = [target.new_cache(2, 32) for target in (narrow, wide)]
    assert [cache.keys[0].dtype for cache in caches] == [torch.bfloat16, torch.float32]
    sizes = [target.new_cache(1, 1).bytes / target._kv_layers[0].head_dim for target in (narrow, wide)]
    assert sizes[0] * 2 == sizes[1]
    unpacked = tiny_target(tiny_llama(hidden_size=64), pack=False, rounding=torch.bfloat16)
    assert unpacked.new_cache(1, 1).keys[0].dtype == torch.float32, "its products take rows as they are"


@pytest.mark.skipif(not (can_tile() and can_unpack()), reason="this CPU unpacks no blocks (AVX512_BF16)")
@pytest.mark.parametrize("tied", [False, True])
def test_blocks_decode_in_bfloat16_as_their_rounded_weights_do(tied: bool) -> None:
    """Logits, embeddings and what drafters are given, to the bit; only memory differs."""
    models = []
    for rounded in (False, True):
        model = tiny_llama(hidden_size=64, intermediate_size=64, initializer_range=0.1, tie_word_embeddings=tied)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                blocks = rounded_to_bytes(parameter.data)
                parameter.data = blocks.bfloat16().float() if rounded else blocks
        models.append(model)
    kept, whole = (tiny_target(model, rounding=torch.bfloat16) for model in models)
    assert set(kept.weights) == {"int8"} and set(whole.weights) == {"bfloat16"}
    found, expected = (TargetSession(each, 40).extend(TEXTS[0].tolist(), 40).logits_NV for each in (kept, whole))
    assert torch.equal(found, expected)
    ids = torch.arange(20)
    assert torch.equal(kept.embed(ids), whole.embed(ids))
    assert torch.equal(kept.ends.head, whole.ends.head) and torch.equal(kept.ends.embedding, whole.ends.embedding)


@pytest.mark.skipif(not can_count(), reason="this CPU multiplies no 8-bit numbers (VNNI)")
@pytest.mark.parametrize("tied", [False, True])
def test_int16_rounds_rows_and_weights_in_no_blocks_and_nothing_else(tied: bool) -> None:
    """Its logits are those of the weights in blocks, but for rows of 16 bits; in pieces they are the same bits."""
    sizes: dict[str, Any] = dict(hidden_size=64, intermediate_size=64, initializer_range=0.1, tie_word_embeddings=tied)
    blocks = tiny_llama(**(sizes | {"tie_word_embeddings": False}))
    blocks.load_state_dict(tiny_llama(**sizes).state_dict())
    for module in blocks.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded_to_bytes(module.weight.data)
    target, exact = tiny_target(tiny_llama(**sizes), rounding=torch.int16), tiny_target(blocks)
    assert (target.precision, target.rounds, exact.rounds) == (torch.int16, torch.int16, None)
    assert target.agreement == torch.float32 and set(target.weights) == {"int8"}
    assert target.new_cache(1, 1).keys[0].dtype == torch.float32
    ids = TEXTS[0][:36]

    def logits(of: Target, pieces: list[int]) -> Tensor:
        session = TargetSession(of, 40)
        return torch.cat([session.extend(part.tolist(), len(part)).logits_NV for part in ids.split(pieces)])

    expected = logits(exact, [36])
    assert 1e-7 < (logits(target, [36]) - expected).abs().max() / expected.abs().max() < 1e-3
    assert torch.equal(logits(target, [1] * 36), logits(target, [36]))
    plain = tiny_target(tiny_llama(**sizes))
    assert torch.equal(target.embed(ids), plain.embed(ids)), "nothing is looked up in blocks"
    assert torch.equal(target.ends.head, plain.ends.head) and target.weights_hash == plain.weights_hash
    target._compiled = None  # steps of PyTorch's kernels know company, and a rounding may fall to the other side
    assert 0 < allowed_gap(16.0, target.agreement) < 0.1


@pytest.mark.skipif(not can_count(), reason="this CPU multiplies no 8-bit numbers (VNNI)")
def test_int16_leaves_blocks_as_they_are() -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    before = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.data = rounded_to_bytes(parameter.data)
            before[name] = parameter.data.clone()
    tiny_target(model, pack=False, rounding=torch.int16)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters() if name in before)


@pytest.mark.skipif(not can_count(), reason="this CPU multiplies no 8-bit numbers (VNNI)")
def test_who_asks_for_rounding_hears_of_products_that_stay_exact() -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=80)
    told = f"{model.config.num_hidden_layers} of the products of .* float32 .* groups of 32"
    with pytest.warns(UserWarning, match=told):
        target = tiny_target(model, rounding=torch.int16)
    assert target.rounds == torch.int16, "the others round"


@pytest.mark.parametrize("units", [False, True])
def test_a_drafter_rounds_as_its_target_does_on_matrix_units_alone(
    units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "has_units", lambda: units)
    beside = [rounding.rows_beside(each) for each in (None, torch.int16, torch.bfloat16)]
    assert beside == [torch.int16, torch.int16, torch.bfloat16 if units else torch.int16]
    assert rounding.shares_readings(torch.bfloat16) == units and not rounding.shares_readings(torch.int16)


def test_int16_needs_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "can_count", lambda: False)
    with pytest.raises(UserError, match=r"int16 needs a CPU .* \(AVX512_VNNI or AVX_VNNI\); use --dtype float32"):
        rounding.rounds_weights(torch.int16)


def test_weights_that_half_precision_holds_take_half_the_bytes_unasked() -> None:
    model = tiny_llama()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    target = tiny_target(model)
    assert set(target.weights) <= {"float16", "bfloat16"}
    assert 2 * sum(target.weights.values()) == sum(tiny_target().weights.values())


def test_a_weight_beyond_half_precision_is_one_clear_error() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match="tiny has weights too large for float16; use --dtype float32"):
        tiny_target(model, rounding=torch.float16)
