"""The attention seam against Hugging Face's own forward, fp32: ragged steps, rollback, taps, and what is refused."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache
from dspark.targets.attention import ragged_attention
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch
from dspark.targets.session import TargetSession
from tiny import VOCAB, cache_of, tiny_llama, tiny_target

TEXTS = torch.randint(0, VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))


def reference(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits [T, V] of Hugging Face's own attention without any cache."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]


def step(target: Target, cache: KVCache, tables: list[BlockTable], parts: list[Tensor]) -> list[Tensor]:
    """One ragged step; logits of each request's tokens."""
    batch = RaggedBatch(cache, tables, [len(part) for part in parts])
    with torch.inference_mode():
        hidden = target.forward(torch.cat(parts), batch).hidden_TD
        return list(target.head(hidden).split(batch.counts))


@pytest.mark.parametrize("size", [None, 3, 16])
@pytest.mark.parametrize("pack", [True, False])
def test_mixed_prefill_ragged_verification_and_rollback_match_hugging_face(pack: bool, size: int | None) -> None:
    expected = [reference(tiny_llama(), ids) for ids in TEXTS]
    target = tiny_target(pack=pack)
    cache, tables = cache_of(target, 3, 40, size)
    done = [0, 0, 0]
    # prefill of different lengths, a chunked one, verification of 1..8 tokens, single tokens, in any mixture
    for counts in ([5, 12, 1], [7, 1, 8], [1, 2, 3], [4, 4, 4], [1, 1, 1], [8, 1, 5]):
        parts = [TEXTS[i, done[i] : done[i] + n] for i, n in enumerate(counts)]
        for i, logits in enumerate(step(target, cache, tables, parts)):
            torch.testing.assert_close(logits, expected[i][done[i] : done[i] + counts[i]], rtol=1e-4, atol=1e-4)
            done[i] += counts[i]
        # wrong drafts, then rejected: they must leave no trace
        step(target, cache, tables, [(TEXTS[i, : 3 + i] + 7) % VOCAB for i in range(3)])
        for table, length in zip(tables, done, strict=True):
            table.truncate(length)


def test_a_forgotten_rollback_is_seen() -> None:
    expected = reference(tiny_llama(), TEXTS[0])
    target = tiny_target()
    cache, tables = cache_of(target, 1, 40)
    step(target, cache, tables, [TEXTS[0, :5]])
    step(target, cache, tables, [(TEXTS[0, 5:7] + 7) % VOCAB])  # rejected, but kept
    logits = step(target, cache, tables, [TEXTS[0, 5:9]])[0]
    assert (logits - expected[5:9]).abs().max() > 1e-2


@settings(max_examples=20)
@given(
    slots=st.permutations(range(4)).flatmap(lambda order: st.integers(1, 4).map(lambda n: sorted(order[:n]))),
    counts=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    starts=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    size=st.sampled_from([None, 1, 4]),
)
def test_neighbours_do_not_change_a_request(
    slots: list[int], counts: list[int], starts: list[int], size: int | None
) -> None:
    target = tiny_target()
    (shared, tables), (alone, own) = cache_of(target, 4, 24, size), cache_of(target, 1, 24)
    texts = {slot: torch.randint(0, VOCAB, (24,), generator=torch.Generator().manual_seed(slot)) for slot in slots}
    for slot in slots:
        if starts[slot]:
            step(target, shared, [tables[slot]], [texts[slot][: starts[slot]]])
    parts = [texts[slot][starts[slot] : starts[slot] + counts[slot]] for slot in slots]
    together = step(target, shared, [tables[slot] for slot in slots], parts)
    for slot, found in zip(slots, together, strict=True):
        own[0].truncate(0)
        whole = step(target, alone, own, [texts[slot][: starts[slot] + counts[slot]]])[0]
        torch.testing.assert_close(found, whole[starts[slot] :], rtol=1e-4, atol=1e-4)


def test_a_sliding_window_shorter_than_the_context() -> None:
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=6,
        initializer_range=0.3,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    model = MistralForCausalLM(MistralConfig(**sizes))
    expected = reference(model, TEXTS[0])
    torch.manual_seed(3)
    unwindowed = reference(MistralForCausalLM(MistralConfig(**sizes | {"sliding_window": None})), TEXTS[0])
    assert (expected - unwindowed).abs().max() > 1e-2  # the window matters here
    target = tiny_target(model)
    cache, tables = cache_of(target, 1, 40)
    parts = [TEXTS[0, :15], TEXTS[0, 15:23], TEXTS[0, 23:24], TEXTS[0, 24:]]
    found = torch.cat([step(target, cache, tables, [part])[0] for part in parts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_taps_are_the_outputs_of_the_layers_named() -> None:
    model = tiny_llama()
    with torch.no_grad():
        states = model(input_ids=TEXTS[:1], output_hidden_states=True).hidden_states
    session = TargetSession(tiny_target(), capacity=40, taps=(-1, 0, 1))
    features = torch.cat(
        [session.extend(TEXTS[0, :30].tolist(), 1).features_TF, session.extend(TEXTS[0, 30:].tolist(), 1).features_TF]
    )
    torch.testing.assert_close(features, torch.cat([s[0] for s in states[:3]], dim=-1), rtol=1e-4, atol=1e-4)


def test_a_full_slot_is_a_clear_error() -> None:
    session = TargetSession(tiny_target(), capacity=8)
    session.extend([1] * 8, 1)
    with pytest.raises(UserError, match="needs 9 positions but its part of the cache holds 8"):
        session.extend([1], 1)


def test_a_model_that_ignores_the_seam_is_refused() -> None:
    class Deaf(LlamaForCausalLM):
        """Runs, but never calls the attention function that was registered."""

        def set_attn_implementation(self, implementation: str) -> None:
            super().set_attn_implementation("eager")

    model = Deaf(tiny_llama().config)
    with pytest.raises(UserError, match="Deaf.*seam was not called in every layer"):
        tiny_target(model)


@pytest.mark.parametrize("family", ["StableLm", "Nemotron"])
def test_a_model_that_hands_nothing_on_to_its_attention_is_refused(family: str) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, pad_token_id=0)
    with pytest.raises(UserError, match=f"{family}Attention does not get what its forward pass was given"):
        tiny_target(getattr(transformers, f"{family}ForCausalLM")(config))


def test_a_model_of_another_kind_is_refused_by_name() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(UserError, match="BloomForCausalLM.*num_key_value_heads"):
        tiny_target(model)


def test_a_model_that_scales_its_embedding_outside_the_matrix_is_refused_by_name() -> None:
    config = GraniteConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = GraniteForCausalLM(config)
    model.model.embedding_multiplier = 3.0  # and the config, which is all that we go by, says 1
    with pytest.raises(UserError, match="GraniteForCausalLM.*first layer's input is not the embedding"):
        tiny_target(model)


def test_a_recurrent_model_is_refused_with_the_reason() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(UserError, match="recurrent state"):
        tiny_target(model)


def test_an_attention_keyword_without_an_implementation_is_an_error() -> None:
    with pytest.raises(UserError, match="alibi"):
        ragged_attention(torch.nn.Identity(), *[torch.zeros(1)] * 3, None, ragged_batch=None, alibi=30.0)
