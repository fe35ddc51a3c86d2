"""The layers of a target as one program, where they are made of what it knows."""

from __future__ import annotations

from typing import Any

from torch import nn

from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.stack import Stack, StackLayer
from dspark.targets.lean import LeanAttention

FEW_ROWS = 64  # so many are a program even where whole texts are read in a hurry: Python costs more than attention
_CHILDREN = {
    "input_layernorm": LeanNorm,
    "self_attn": LeanAttention,
    "post_attention_layernorm": LeanNorm,
    "mlp": LeanMLP,
}


def compiled_layers(base: nn.Module) -> Stack | None:
    """The layers of ``base`` as a program; whether it gives their numbers is found by running it, by others."""
    parts: list[Any] = [getattr(base, name, None) for name in ("layers", "embed_tokens", "rotary_emb", "norm")]
    if None in parts:
        return None
    layers = [_parts(layer) for layer in parts[0]]
    known = [layer for layer in layers if layer is not None and layer.compiles()]
    return Stack(known) if len(known) == len(layers) else None


def _parts(layer: nn.Module) -> StackLayer | None:
    """The four children of a Llama's layer, where it has just these and all of them are lean."""
    children: dict[str, Any] = dict(layer.named_children())
    if children.keys() != _CHILDREN.keys() or not all(isinstance(children[n], kind) for n, kind in _CHILDREN.items()):
        return None
    return StackLayer(*(children[name] for name in _CHILDREN))
