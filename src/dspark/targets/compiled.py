"""The layers of a target as one program, where they are made of what it knows."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import nn

from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.stack import Stack, StackLayer
from dspark.targets.lean import LeanAttention

FEW_ROWS = 64  # so many are a program even where whole texts are read in a hurry: Python costs more than attention
# The children of a layer in the order of a StackLayer's parts: Llama's, and Gemma's, whose additions are normed too.
_LAYOUTS = (
    ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
    (
        "input_layernorm",
        "self_attn",
        "pre_feedforward_layernorm",
        "mlp",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
)
_KINDS: dict[str, type[nn.Module]] = {"self_attn": LeanAttention, "mlp": LeanMLP}  # all others are norms


def compiled_layers(base: nn.Module) -> Stack | None:
    """The layers of ``base`` as a program; whether it gives their numbers is found by running it, by others."""
    parts: list[Any] = [getattr(base, name, None) for name in ("layers", "embed_tokens", "rotary_emb", "norm")]
    if None in parts:
        return None
    rotations = rotations_of(base)
    layers = [_parts(layer, rotations.index(own)) for layer, own in zip(parts[0], _rotations(base), strict=True)]
    known = [layer for layer in layers if layer is not None and layer.compiles()]
    return Stack(known) if len(known) == len(layers) else None


def rotations_of(base: Any) -> list[tuple[str, ...]]:
    """What ``base.rotary_emb`` is given behind hidden states and positions, once for each kind of layers."""
    return list(dict.fromkeys(_rotations(base)))


def _rotations(base: Any) -> list[tuple[str, ...]]:
    """The same, layer by layer: Gemma 3 turns layers that see a window faster than those that see all."""
    if "layer_type" in signature(base.rotary_emb.forward).parameters:
        return [(kind,) for kind in base.config.layer_types]
    return [()] * len(base.layers)


def _parts(layer: nn.Module, rotation: int) -> StackLayer | None:
    """The children of a layer, where it has just those of a known layout and all of them are lean."""
    children: dict[str, Any] = dict(layer.named_children())
    for names in _LAYOUTS:
        if children.keys() == set(names) and all(isinstance(children[n], _KINDS.get(n, LeanNorm)) for n in names):
            return StackLayer(*(children[name] for name in names), rotation=rotation)
    return None
