"""Lean twins for modules of a Hugging Face model, each in place only after it gave the same numbers.

The model stays Hugging Face's own: its layers, residuals, experts and ends are not touched. Three kinds of module are
replaced where a twin of fewer operations computes the same: norms, gated MLPs, and attention with rotated halves. No
family is named here. An attention module is watched (what it was given, what it handed to the seam, what it returned),
and a twin that answers otherwise is dropped.

Legend: T tokens, H key/value heads, N query heads and 2 H, D head size, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from dspark.kernels.kept import KINDS
from dspark.kernels.rows import can_row, turn_and_store
from dspark.nn.block_attention import attend
from dspark.nn.lean import LeanMLP, LeanNorm, head_norms, paired, turn
from dspark.nn.packed import frozen_linear
from dspark.targets.attention import ragged_attention
from dspark.targets.ragged import RaggedBatch

WATCHED = "dspark_watched"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
# Largest difference between a twin and its original, as a share of the original's largest entry.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Inputs so large that a module which clips what it computes gives itself away, and the difference that this makes:
# attention to nearly one position each magnifies rounding, but not to this.
_LOUD, _SILENCED = 16.0, 0.3


@dataclass
class Call:
    """One call of an attention module: arguments and result, head size and settings as the seam received them."""

    arguments: dict[str, Any]
    out: Tensor
    head_dim: int
    settings: dict[str, Any]


class LeanAttention(nn.Module):
    """Causal attention through the block cache: one product in, rotation in place, one write to the cache, one product
    out.

    Queries and keys are kept in ``paired`` order, to which their products with each other are blind.
    """

    def __init__(self, module: Any, call: Call) -> None:
        super().__init__()
        self.layer_idx: int = module.layer_idx
        self.width = call.head_dim
        scale, sinks = call.settings["scale"], call.settings["sinks_Q"]
        self.settings = call.settings | {
            "scale": self.width**-0.5 if scale is None else scale,
            "sinks_Q": None if sinks is None else sinks.detach().float().contiguous(),
        }
        order = paired(self.width)
        weights, biases = [], []
        for name, kept in (("q_proj", order), ("k_proj", order), ("v_proj", order.sort().values)):
            linear: nn.Linear = getattr(module, name)
            weights.append(linear.weight.unflatten(0, (-1, self.width))[:, kept].flatten(0, 1))
            if linear.bias is not None:
                biases.append(linear.bias.unflatten(0, (-1, self.width))[:, kept].flatten())
        self.product = frozen_linear(torch.cat(weights), torch.cat(biases) if biases else None)
        self.output = frozen_linear(module.o_proj.weight, module.o_proj.bias)
        self.queries = module.q_proj.out_features // self.width
        self.rotated = self.queries + module.k_proj.out_features // self.width
        self.norms = nn.ModuleList()
        if getattr(module, "q_norm", None) is not None:
            self.norms.extend(LeanNorm(each.weight[order], each.eps) for each in (module.q_norm, module.k_norm))
        self.head_norms = head_norms(*self.norms) if self.norms else None

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], ragged_batch: RaggedBatch, **_: Any
    ) -> tuple[Tensor, None]:
        """``[1, T, d]`` to ``[1, T, d]``, as transformers' attention modules are called."""
        heads_TND = self.product(hidden_states).view(hidden_states.shape[1], -1, self.width)
        query_TQD, key_THD = heads_TND[:, : self.queries], heads_TND[:, self.queries : self.rotated]
        rotation, cache = ragged_batch.rotation(*position_embeddings), ragged_batch.cache
        both_HSD = cache.both(self.layer_idx)
        if can_row(heads_TND, self.width) and both_HSD.dtype in KINDS:
            where = (self.rotated, self.queries, ragged_batch.rows_T, both_HSD)
            turn_and_store(heads_TND, rotation, *where, self.head_norms)
        else:
            for part, norm in zip((query_TQD, key_THD) if self.norms else (), self.norms, strict=True):
                part.copy_(norm(part))
            turn(heads_TND[:, : self.rotated], rotation)
            kept_THD = heads_TND[:, self.queries :].to(both_HSD.dtype)
            both_HSD.index_copy_(1, ragged_batch.rows_T, kept_THD.transpose(0, 1))
        keys, values = cache.keys[self.layer_idx], cache.values[self.layer_idx]
        out_TQD = attend(query_TQD, keys, values, ragged_batch.plan, **self.settings)
        return self.output(out_TQD.flatten(1))[None], None


def lean_norms(model: nn.Module) -> int:
    """Replace root-mean-square norms whose twin agrees on random rows; returns how many."""
    return sum(_swap(parent, name, plain_norm(child)) for parent, name, child in _children(model))


def lean_mlps(model: nn.Module) -> int:
    """Replace gated MLPs whose twin agrees on random rows. Returns how many."""
    return sum(
        _swap(parent, name, _mlp_twin(child))
        for parent, name, child in _children(model)
        if _linears(child, ("gate_proj", "up_proj", "down_proj")) and callable(getattr(child, "act_fn", None))
    )


def lean_attention(model: nn.Module, calls: dict[nn.Module, Call]) -> int:
    """Replace watched attention modules whose twin gives the same answer to the same call; returns how many."""
    return sum(
        _swap(parent, name, _attention_twin(child, calls[child]))
        for parent, name, child in _children(model)
        if child in calls and _linears(child, _PROJECTIONS)
    )


def plain_norm(module: nn.Module) -> LeanNorm | None:
    """The twin of a root-mean-square norm, which multiplies by its weight (Gemma's by 1 + theirs); None for others."""
    return _norm_twin(module) if "RMSNorm" in type(module).__name__ else None


def drafting_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The state dict of a decoder layer with the weights that ``plain_norm`` finds, and with whatever its scores are
    scaled by besides D^-0.5 in the norm of its queries, where it has one.
    """
    norms = {name: twin for name, each in layer.named_modules() if (twin := plain_norm(each)) is not None}
    weights = dict(layer.state_dict()) | {f"{name}.weight": twin.weight for name, twin in norms.items()}
    scale = getattr(getattr(layer, "self_attn", None), "scaling", None)
    if scale is not None and (query := norms.get("self_attn.q_norm")) is not None:
        weights["self_attn.q_norm.weight"] = query.weight * (scale * query.weight.numel() ** 0.5)
    return weights


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[nn.Module, Call]]:
    """Note the attention calls of the forward passes inside; the model must use ``WATCHED`` as its attention."""
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, _: Any, arguments: dict[str, Any], out: Any) -> None:
        batch = arguments.get("ragged_batch")
        layer: int = module.layer_idx  # type: ignore[assignment]  # every transformers attention carries its index
        handed = batch.handed.get(layer) if isinstance(batch, WatchedBatch) else None
        if handed is not None and isinstance(out, tuple) and len(out) == 2:
            calls[module] = Call(arguments, out[0], *handed)

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules() if hasattr(m, "layer_idx")]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class WatchedBatch(RaggedBatch):
    """A step that notes what each layer's attention hands to the seam: head size and settings.

    Its positions are near the beginning and near ``end``, so that a module which treats late tokens in a way of its own
    gives itself away.
    """

    def __init__(self, *step: Any, end: int) -> None:
        super().__init__(*step)
        self.handed: dict[int, tuple[int, dict[str, Any]]] = {}
        half = len(self.positions_T) // 2
        self.positions_T[half:] += end - len(self.positions_T)


def _watched_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    result = ragged_attention(module, query, key, value, attention_mask, **settings)
    names = {"scale": "scaling", "window": "sliding_window", "softcap": "softcap", "sinks_Q": "s_aux"}
    given = {ours: settings.get(theirs) for ours, theirs in names.items()}
    batch: WatchedBatch = settings["ragged_batch"]
    layer: int = module.layer_idx  # type: ignore[assignment]  # every transformers attention carries its index
    if batch.cache.owns(layer):
        batch.handed[layer] = (query.shape[-1], given)
    return result


AttentionInterface.register(WATCHED, _watched_attention)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


def _linears(module: nn.Module, names: tuple[str, ...]) -> bool:
    return all(type(getattr(module, name, None)) is nn.Linear for name in names)


def _swap(parent: nn.Module, name: str, twin: nn.Module | None) -> bool:
    if twin is not None:
        setattr(parent, name, twin)
    return twin is not None


def _same(found: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    limit = (tolerance or _TOLERANCE[expected.dtype]) * expected.float().abs().max()
    return found.shape == expected.shape and bool((found.float() - expected.float()).abs().max() <= limit)


def _same_rows(twin: nn.Module, original: nn.Module, width: int, like: Tensor) -> bool:
    """Whether both agree on random rows, each for itself: one is so small that an epsilon matters, one is loud."""
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    rows *= torch.tensor([[1.0], [1.0], [1e-3], [_LOUD]])
    rows = rows.to(like.device, like.dtype)
    return all(_same(found, expected) for found, expected in zip(twin(rows), original(rows), strict=True))


def _norm_twin(norm: Any) -> LeanNorm | None:
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    twins = [LeanNorm(scale, eps) for scale in (weight, 1 + weight)]  # Gemma's norms keep the distance from 1
    return next((twin for twin in twins if _same_rows(twin, norm, len(weight), weight)), None)


def _mlp_twin(mlp: Any) -> nn.Module | None:
    if (mlp.gate_proj.bias is None) != (mlp.up_proj.bias is None):
        return None
    twin = LeanMLP(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn)
    return twin if _same_rows(twin, mlp, mlp.gate_proj.in_features, mlp.gate_proj.weight) else None


def _attention_twin(module: Any, call: Call) -> nn.Module | None:
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    biased = {getattr(module, name).bias is None for name in _PROJECTIONS[:3]}
    angles = call.arguments.get("position_embeddings")
    if len(biased) > 1 or not (norms == [None, None] or all(isinstance(each, LeanNorm) for each in norms)):
        return None
    if not isinstance(angles, tuple) or any(each.shape[-1] != call.head_dim for each in angles):
        return None
    twin = LeanAttention(module, call)
    loud = call.arguments | {"hidden_states": _LOUD * call.arguments["hidden_states"]}
    same = _same(twin(**call.arguments)[0], call.out) and _same(twin(**loud)[0], module(**loud)[0], _SILENCED)
    return twin if same else None
