"""The seam: an attention function that Hugging Face models call in place of their own.

It stores the step's keys and values in our cache and lets every request attend to its own positions. Query heads that
share a key/value head are folded into the query length, so keys and values are read once and never repeated.

Legend: T tokens, R requests, n tokens of one request, Q query heads, H key/value heads, G = Q / H, D head size, S
positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dspark.foundation.errors import UserError
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
    ragged_batch: RaggedBatch,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a ragged batch; query ``[1, Q, T, D]``, key and value ``[1, H, T, D]`` to ``[1, T,
    Q, D]``.

    Raises UserError for a keyword whose meaning is not implemented, rather than computing something else.
    """
    unknown = sorted(name for name, given in others.items() if name not in _NEUTRAL and given is not None)
    if unknown or attention_mask is not None or dropout:
        found = unknown or (["attention_mask"] if attention_mask is not None else ["dropout"])
        raise UserError(f"the model's attention uses {', '.join(found)}, which is not supported; use another target")
    layer: int = module.layer_idx  # type: ignore[assignment]  # every transformers attention carries its index
    cache = ragged_batch.cache
    cache.store(layer, ragged_batch.rows_T, key[0], value[0])
    heads = key.shape[1]
    groups = query.shape[1] // heads
    out_TQD = torch.empty_like(query[0].transpose(0, 1))
    for index, run in enumerate(ragged_batch.runs):
        tokens = slice(run.first_token, run.first_token + run.count * run.requests)
        slots = slice(run.first_slot, run.first_slot + run.requests)
        folded = _fold(query[0, :, tokens], run.requests, heads, groups)
        attended = scaled_dot_product_attention(
            folded,
            cache.keys[layer][slots, : run.span].transpose(1, 2),
            cache.values[layer][slots, : run.span].transpose(1, 2),
            attn_mask=ragged_batch.mask(index, groups, sliding_window, query.dtype),
            scale=scaling,
        )
        out_TQD[tokens] = _unfold(attended, run.requests, heads, groups)
    return out_TQD[None], None


def _fold(query_QTD: Tensor, requests: int, heads: int, groups: int) -> Tensor:
    """``[Q, R*n, D]`` to ``[R, H, G*n, D]``: the queries of one key/value head become one longer query."""
    split = query_QTD.reshape(heads, groups, requests, -1, query_QTD.shape[-1])
    return split.permute(2, 0, 1, 3, 4).flatten(2, 3)


def _unfold(attended_RHXD: Tensor, requests: int, heads: int, groups: int) -> Tensor:
    """``[R, H, G*n, D]`` back to ``[R*n, Q, D]``."""
    split: Tensor = attended_RHXD.unflatten(2, (groups, -1))
    return split.permute(0, 3, 1, 2, 4).reshape(-1, heads * groups, attended_RHXD.shape[-1])


AttentionInterface.register(SEAM, ragged_attention)
