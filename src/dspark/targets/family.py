"""What a family of models does outside its modules, as values from the config.

Hugging Face's forward pass stays as it is; these are the few facts that a cache and the two ends of the model need
besides: scales that live between a matrix and its use, shapes of keys and values by layer, and layers that read those
of an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dspark.nn.cache import KVLayer


@dataclass(frozen=True)
class Scales:
    """Numbers between the two matrices and their use: embedding times ``embedding``, logits times ``logits``, then
    ``softcap * tanh(logits / softcap)`` where there is one.
    """

    embedding: float = 1.0
    logits: float = 1.0
    softcap: float | None = None

    def embedded(self, rows: Tensor) -> Tensor:
        """Rows of the embedding as the first layer receives them."""
        return rows if self.embedding == 1.0 else rows * self.embedding

    def scored(self, logits: Tensor) -> Tensor:
        """Products with the head as logits."""
        if self.logits != 1.0:
            logits = logits * self.logits
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def scales_of(config: Any) -> Scales:
    """Granite multiplies embeddings and divides logits, Cohere multiplies logits, Gemma caps them.

    (Gemma's scaled embedding is a module of its own and needs no value here.) A model that scales in some other way is
    found out by the self-probe.
    """
    scaling = getattr(config, "logits_scaling", None)
    return Scales(
        embedding=float(getattr(config, "embedding_multiplier", None) or 1.0),
        logits=1.0 / scaling if scaling else float(getattr(config, "logit_scale", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def kv_layers(config: Any) -> list[KVLayer]:
    """Key/value heads and head size of every layer, and the layer whose keys and values it reads (mostly its own)."""
    modes = getattr(config, "kv_sharing_modes", None) or [None] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    stored: dict[str, int] = {}
    layers = []
    for index, (mode, kind) in enumerate(zip(modes, kinds, strict=True)):
        own = _layer_config(config, index)
        head_dim = getattr(own, "head_dim", None) or config.hidden_size // config.num_attention_heads
        source = stored[kind] if mode == "reuse" else index
        if mode == "store":
            stored[kind] = index
        layers.append(KVLayer(own.num_key_value_heads, head_dim, source))
    return layers


def rope_types(config: Any) -> set[str]:
    """Kinds of RoPE in use; some families have one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    several = [value for value in parameters.values() if isinstance(value, dict)]
    return {each.get("rope_type", "default") for each in several or [parameters]}


def _layer_config(config: Any, index: int) -> Any:
    """Settings of one layer, where layers differ."""
    return config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config
