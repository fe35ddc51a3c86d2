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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a ragged batch; query ``[1, Q, T, D]``, key and value ``[1, H, T, D]`` to ``[1, T,
    Q, D]``.

    ``sliding_window``: a query sees that many positions, its own included. ``softcap``: scores become ``softcap *
    tanh(score / softcap)`` (Gemma 2). ``s_aux [Q]``: a score a head that takes part in the softmax and brings nothing
    (the sinks of gpt-oss). Raises UserError for a keyword whose meaning is not implemented, rather than computing
    something else.
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
        keys, values = (t[layer][slots, : run.span].transpose(1, 2) for t in (cache.keys, cache.values))
        mask = ragged_batch.mask(index, groups, sliding_window, query.dtype)
        if softcap is None and s_aux is None:
            attended = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
        else:
            sinks = None if s_aux is None else _fold_heads(s_aux, heads, run.count)
            attended = _attend(folded, keys, values, mask, scaling or query.shape[-1] ** -0.5, softcap, sinks)
        out_TQD[tokens] = _unfold(attended, run.requests, heads, groups)
    return out_TQD[None], None


def _attend(
    q_RHXD: Tensor,
    k_RHSD: Tensor,
    v_RHSD: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks_HX1: Tensor | None,
) -> Tensor:
    """Attention written out, for what the fused kernel lacks; the softmax in fp32 at least."""
    scores = (q_RHXD @ k_RHSD.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    if sinks_HX1 is not None:
        scores = torch.cat((scores, sinks_HX1.to(scores.dtype).expand(*scores.shape[:3], 1)), dim=-1)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=dtype)[..., : k_RHSD.shape[2]]
    return weights.to(v_RHSD.dtype) @ v_RHSD


def _fold_heads(values_Q: Tensor, heads: int, count: int) -> Tensor:
    """A number for each query head to ``[H, G*n, 1]``, as ``_fold`` lays out the queries."""
    return values_Q.view(heads, -1).repeat_interleave(count, dim=1)[..., None]


def _fold(query_QTD: Tensor, requests: int, heads: int, groups: int) -> Tensor:
    """``[Q, R*n, D]`` to ``[R, H, G*n, D]``: the queries of one key/value head become one longer query."""
    split = query_QTD.reshape(heads, groups, requests, -1, query_QTD.shape[-1])
    return split.permute(2, 0, 1, 3, 4).flatten(2, 3)


def _unfold(attended_RHXD: Tensor, requests: int, heads: int, groups: int) -> Tensor:
    """``[R, H, G*n, D]`` back to ``[R*n, Q, D]``."""
    split: Tensor = attended_RHXD.unflatten(2, (groups, -1))
    return split.permute(0, 3, 1, 2, 4).reshape(-1, heads * groups, attended_RHXD.shape[-1])


AttentionInterface.register(SEAM, ragged_attention)
