"""Attention over cached blocks: a kernel call for a run of blocks, partial results put together by their mass.

Softmax over many pieces is a weighted mean of the softmaxes of the pieces, the weights being the shares of the total
mass, so each piece comes with the logarithm of its own (log-sum-exp). Query heads that share a key/value head are
folded into the query length, so keys and values are read once and never repeated.

Legend: T tokens of a step, R requests of a group, n tokens of one request (padded), Q query heads, H key/value heads,
G = Q / H, A = R * n, X = G * n, P items, M items of one request (padded), S rows, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.kernels.attention import attend_compiled, can_attend
from dspark.nn.blocks import FixedPlan, Group, Plan


def attend(
    query_TQD: Tensor,
    keys_HSD: Tensor,
    values_HSD: Tensor,
    plan: Plan | FixedPlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
) -> Tensor:
    """Attention ``[T, Q, D]`` of a step's queries over a cache that holds their own keys and values already, in their
    dtype or a narrower one.

    ``scale``: D^-0.5 if None. ``window``: a query sees that many positions, its own included. ``softcap``: scores
    become ``softcap * tanh(score / softcap)`` (Gemma 2). ``sinks_Q``: a score a head that takes part in the softmax and
    brings nothing (gpt-oss).
    """
    heads = keys_HSD.shape[0]
    scale = query_TQD.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(plan, FixedPlan):
        return _attend_fixed(query_TQD, keys_HSD, values_HSD, plan, scale, window, softcap, sinks_Q)
    if can_attend(query_TQD, keys_HSD, scale) and not plan.hurried:
        return attend_compiled(query_TQD, keys_HSD, values_HSD, plan.seen, plan.size, scale, window, softcap, sinks_Q)
    queries = query_TQD.shape[1] // heads
    parts = []
    for number, group in enumerate(plan.groups):
        mine_AQD = query_TQD if plan.in_order else query_TQD.index_select(0, group.tokens_A)
        folded_RHXD = _fold(mine_AQD, len(group.ends), heads)
        partials = []
        for index, piece in enumerate(group.pieces):
            mine_PHXD = folded_RHXD if group.whole else folded_RHXD.index_select(0, group.owners[index])
            mask = plan.mask(number, index, queries, window, query_TQD.dtype)
            k_PHSD, v_PHSD = (piece.view(each).to(query_TQD.dtype) for each in (keys_HSD, values_HSD))
            partials.append(_partial(mine_PHXD, k_PHSD, v_PHSD, mask, scale, softcap))
        if group.whole and sinks_Q is None:
            merged_RHXD = partials[0][0]
        else:
            sinks_HX = None if sinks_Q is None else sinks_Q.view(heads, -1).repeat_interleave(group.longest, dim=1)
            merged_RHXD = _merge(partials, group, sinks_HX)
        parts.append(_unfold(merged_RHXD, queries))
    return parts[0] if plan.in_order else torch.cat(parts).index_select(0, plan.places_T)


def _attend_fixed(
    query_TQD: Tensor,
    keys_HSD: Tensor,
    values_HSD: Tensor,
    plan: FixedPlan,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
) -> Tensor:
    """The same in shapes that the step's contents have no part in."""
    heads, dtype = keys_HSD.shape[0], query_TQD.dtype
    mask = plan.mask(window, dtype).expand(-1, -1, query_TQD.shape[1] // heads, -1)
    k_THSD, v_THSD = (plan.view(each).to(dtype) for each in (keys_HSD, values_HSD))
    out_THGD, mass_THG = _partial(query_TQD.unflatten(1, (heads, -1)), k_THSD, v_THSD, mask, scale, softcap)
    if sinks_Q is not None:
        share_THG = (mass_THG - sinks_Q.view(heads, -1).to(mass_THG.dtype)).sigmoid()
        out_THGD = (out_THGD * share_THG[..., None]).to(dtype)
    return out_THGD.flatten(1, 2)


def _partial(
    q_PHXD: Tensor,
    k_PHSD: Tensor,
    v_PHSD: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention over one piece ``[P, H, X, D]`` and the logarithm of its mass ``[P, H, X]``, fp32 at least."""
    if softcap is None and q_PHXD.device.type == "cpu":
        out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_PHXD, k_PHSD, v_PHSD, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, mass
    # Written out for what the kernel lacks. (On a GPU, where this has not run yet, a kernel should take its place.)
    scores = (q_PHXD @ k_PHSD.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.softmax(dim=-1).to(v_PHSD.dtype) @ v_PHSD, scores.logsumexp(dim=-1)


def _merge(partials: list[tuple[Tensor, Tensor]], group: Group, sinks_HX: Tensor | None) -> Tensor:
    """Each request's partial results weighted by their mass: ``[R, H, X, D]``. A sink is mass that brings nothing."""
    out_PHXD = partials[0][0] if len(partials) == 1 else torch.cat([out for out, _ in partials])
    mass_PHX = partials[0][1] if len(partials) == 1 else torch.cat([mass for _, mass in partials])
    requests, count = group.absent_RM.shape
    mass_RMHX = mass_PHX.index_select(0, group.items_A).unflatten(0, (requests, count))
    if group.ragged:
        mass_RMHX = mass_RMHX.masked_fill(group.absent_RM[..., None, None], float("-inf"))
    if sinks_HX is not None:
        sinks = sinks_HX.to(mass_RMHX.dtype).expand(len(mass_RMHX), 1, *sinks_HX.shape)
        mass_RMHX = torch.cat((mass_RMHX, sinks), dim=1)
    share_RMHX = mass_RMHX.softmax(dim=1)[:, :count]
    out_RMHXD = out_PHXD.index_select(0, group.items_A).unflatten(0, (requests, count))
    merged: Tensor = (out_RMHXD * share_RMHX[..., None]).sum(dim=1)
    return merged.to(out_PHXD.dtype)


def _fold(query_AQD: Tensor, requests: int, heads: int) -> Tensor:
    """``[R*n, Q, D]`` to ``[R, H, G*n, D]``: the queries of one key/value head become one longer query."""
    tokens, queries, width = query_AQD.shape
    split = query_AQD.view(requests, tokens // requests, heads, queries // heads, width)
    return split.permute(0, 2, 3, 1, 4).reshape(requests, heads, -1, width)


def _unfold(attended_RHXD: Tensor, groups: int) -> Tensor:
    """``[R, H, G*n, D]`` back to ``[R*n, Q, D]``."""
    requests, heads, folded, width = attended_RHXD.shape
    split = attended_RHXD.view(requests, heads, groups, folded // groups, width)
    return split.permute(0, 3, 1, 2, 4).reshape(-1, heads * groups, width)
