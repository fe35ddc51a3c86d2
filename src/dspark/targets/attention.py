"""The seam: an attention function that Hugging Face models call in place of their own.

It stores the step's keys and values in our cache and lets every request attend to its own positions.

Legend: T tokens, Q query heads, H key/value heads, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from dspark.foundation.errors import UserError
from dspark.nn.block_attention import attend
from dspark.targets.ragged import RaggedBatch

SEAM = "dspark_ragged"

# Keywords that families pass without any meaning for the result here.
_NEUTRAL = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal"}


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ragged_batch: RaggedBatch | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a ragged batch; query ``[1, Q, T, D]``, key and value ``[1, H, T, D]`` to ``[1, T,
    Q, D]``.

    ``sliding_window``, ``softcap`` and ``s_aux`` (the sinks of gpt-oss) are ``block_attention.attend``'s. Raises
    UserError for a keyword whose meaning is not implemented, rather than computing something else, and where the model
    did not hand ``ragged_batch`` on.
    """
    unknown = sorted(name for name, given in others.items() if name not in _NEUTRAL and given is not None)
    if unknown or attention_mask is not None or dropout:
        found = unknown or (["attention_mask"] if attention_mask is not None else ["dropout"])
        raise UserError(f"the model's attention uses {', '.join(found)}, which is not supported; use another target")
    if ragged_batch is None:
        raise UserError(
            f"the model's {type(module).__name__} does not get what its forward pass was given, which serving"
            " needs; use another target"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]  # every transformers attention carries its index
    cache = ragged_batch.cache
    cache.store(layer, ragged_batch.rows_T, key[0], value[0])
    out_TQD = attend(
        query[0].transpose(0, 1),
        cache.keys[layer],
        cache.values[layer],
        ragged_batch.plan,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks_Q=s_aux,
    )
    return out_TQD[None], None


AttentionInterface.register(SEAM, ragged_attention)
