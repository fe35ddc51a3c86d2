"""Tiny random targets and drafters that every test can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dspark.drafters.chain import ChainDrafter
from dspark.drafters.config import DSparkConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.kinds import config_of, drafter_of
from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache
from dspark.targets.chat import Chat
from dspark.targets.model import Target
from dspark.targets.sources import Source

VOCAB = 64
LAYERS = 3
STOP = 2


class TinyTokenizer:
    """Just enough of a tokenizer: one id a character, no template."""

    chat_template = "yes"
    eos_token_id: int | None = STOP

    def get_vocab(self) -> dict[str, int]:
        return {chr(32 + i): i for i in range(VOCAB)}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % (VOCAB - 3) for c in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1, *self("".join(m["content"] for m in messages))["input_ids"]]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(32 + i) for i in ids)


def tiny_llama(seed: int = 0, sharpness: float = 1.0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama; ``sharpness`` scales its logits, so that some tokens are likely and some are not."""
    sizes = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=STOP,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
    model.lm_head.weight.data.mul_(sharpness)
    return model


def tiny_target(
    model: PreTrainedModel | None = None, pack: bool = True, rounding: torch.dtype | None = None, **changes: Any
) -> Target:
    """``model`` (a random Llama unless given) as a target."""
    source = Source("tiny", Path())
    return Target(model or tiny_llama(**changes), Chat(TinyTokenizer()), source, pack=pack, rounding=rounding)


def tiny_drafter(target: Target, seed: int = 0, **changes: Any) -> DSparkDrafter:
    """A random drafter for ``target``."""
    sizes = dict(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_target_layers=target.num_layers,
        target_layer_ids=(0, 1),
        mask_token_id=VOCAB - 1,
        block_size=4,
        markov_rank=8,
    )
    torch.manual_seed(seed)
    drafter = DSparkDrafter(DSparkConfig(**(sizes | changes)), target.ends)
    if drafter.config.markov_rank:
        torch.nn.init.normal_(drafter.markov_head.markov_w2.weight, std=0.5)
    return drafter.eval()


def tiny_chain(target: Target, kind: str = "eagle3", seed: int = 0, **changes: Any) -> ChainDrafter:
    """A random drafter of ``kind`` whose chains begin with the target's own hidden states, so some are accepted."""
    sizes = dict(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_target_layers=target.num_layers,
        target_layer_ids=(0, 1) if kind == "eagle3" else (target.num_layers - 1,),
        block_size=4 if kind == "eagle3" else 1,
    )
    torch.manual_seed(seed)
    drafter = drafter_of(config_of(kind, sizes | changes), target.ends)
    assert isinstance(drafter, ChainDrafter)
    drafter.reset()
    return drafter.eval()


def cache_of(target: Target, requests: int, capacity: int, size: int | None = None) -> tuple[KVCache, list[BlockTable]]:
    """A cache and a table for each request: a block of its own each, or blocks of ``size`` in no order at all."""
    if size is None:
        cache = target.new_cache(requests, capacity)
        return cache, cache.tables()
    each = -(-capacity // size)
    numbers = torch.randperm(requests * each, generator=torch.Generator().manual_seed(5)).tolist()
    tables = [BlockTable(numbers[i * each : (i + 1) * each]) for i in range(requests)]
    return target.new_cache(requests * each, size), tables
