"""A tiny target and a tiny drafter for it, saved as real ones are.

The target is all but a bigram model, and so is the drafter, so that greedy drafts are accepted and rejected alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 160
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def make_tokenizer(first_merge: tuple[str, str] = ("a", "b")) -> PreTrainedTokenizerFast:
    """Bytes, one merge and the special tokens; another merge is another tokenizer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters, "".join(first_merge)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[first_merge]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )


def make_target(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Path:
    """Save a random Llama whose layers add little to the embedding of the last token."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                torch.nn.init.normal_(parameter, std=1.0)
            elif parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_drafter(folder: Path, target_folder: Path) -> Path:
    """Save a drafter for that target whose Markov head knows the target's bigrams."""
    from dspark.drafters.checkpoint import save_drafter
    from dspark.drafters.config import DSparkConfig
    from dspark.drafters.dspark import DSparkDrafter
    from dspark.targets.model import load_target

    target = load_target(str(target_folder), "float32", "cpu")
    config = DSparkConfig(
        vocab_size=target.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_target_layers=4,
        target_layer_ids=(0, 2),
        mask_token_id=0,
        block_size=4,
        markov_rank=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drafter = DSparkDrafter(config, target.ends)
        with torch.no_grad():
            for name, parameter in drafter.named_parameters():
                parameter.mul_(0.1 if "o_proj" in name or "down_proj" in name else 1.0)
            # The bigram itself: B = W_2 W_1[x] gives about the target's logits after x.
            embedding = target.ends.embedding
            normed = embedding / embedding.pow(2).mean(dim=-1, keepdim=True).sqrt()
            drafter.markov_head.markov_w1.weight.copy_(normed)
            drafter.markov_head.markov_w2.weight.copy_(target.ends.head)
    save_drafter(folder, drafter, target.identity)
    return folder
