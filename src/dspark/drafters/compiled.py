"""A drafter's backbone on compiled kernels: the same sums as ``dflash``, without Python between its products.

Legend: T tokens, F = L*d tapped features, R requests, K slots of a block, d hidden size, H key/value heads, D head
size, B draft layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dspark.kernels.machine import lanes
from dspark.kernels.program import Program, Rooms
from dspark.kernels.rows import HeadNorms, can_row, norm_call, turn_call
from dspark.nn.blocks import Plan
from dspark.nn.cache import KVCache
from dspark.nn.layer import BlockAttention, DraftLayer
from dspark.nn.lean import LeanNorm, head_norms, lean_mlp, lean_norm, paired
from dspark.nn.packed import can_pack, frozen_linear
from dspark.nn.rope import RotationTable, rotary
from dspark.nn.shelf import Shelf
from dspark.nn.stack import Stack, StackLayer, product_call

if TYPE_CHECKING:
    from dspark.drafters.dflash import DFlashBackbone
    from dspark.drafters.drafter import Drafter


class LeanBlockAttention(nn.Module):
    """A block's attention as ``stack.Attention``: queries and keys in ``paired`` order, all of a block visible."""

    def __init__(self, own: BlockAttention, layer: int, window: int | None) -> None:
        super().__init__()
        self.layer_idx, self.width = layer, own.head_dim
        self.queries = own.q_proj.out_features // own.head_dim
        self.rotated = self.queries + own.kv_heads
        self.settings: dict[str, Any] = {
            "scale": own.head_dim**-0.5,
            "window": window,
            "softcap": None,
            "sinks_Q": None,
        }
        order = paired(own.head_dim)
        query, key = (_in_order(linear.weight, own.head_dim) for linear in (own.q_proj, own.k_proj))
        self.product = frozen_linear(torch.cat((query, key, own.v_proj.weight)))
        self.output = frozen_linear(own.o_proj.weight)
        norms = [LeanNorm(norm.weight[order], norm.eps) for norm in (own.q_norm, own.k_norm)]
        self.head_norms: HeadNorms | None = head_norms(*norms)


class CompiledBackbone(nn.Module):
    """Context rows and hidden states of blocks, frozen; only for one that ``compiles``."""

    def __init__(self, backbone: DFlashBackbone) -> None:
        super().__init__()
        config = backbone.config
        self.config, self._embed = config, backbone.embed
        self.fc, self.hidden_norm = frozen_linear(backbone.fc.weight), lean_norm(backbone.hidden_norm)
        self.norm = lean_norm(backbone.norm)
        layers: list[DraftLayer] = list(backbone.layers)  # type: ignore[arg-type]  # made in its __init__
        self.attentions = nn.ModuleList(
            LeanBlockAttention(each.self_attn, i, config.draft_window or None) for i, each in enumerate(layers)
        )
        own = [each for each in self.attentions if isinstance(each, LeanBlockAttention)]
        self.context = frozen_linear(torch.cat([context_weight(layer.self_attn) for layer in layers]))
        self.head_norms = [each.head_norms for each in own]
        self.stack = Stack([_stack_layer(layer, each) for layer, each in zip(layers, own, strict=True)])
        self.mlps = nn.ModuleList(each.mlp for each in self.stack.layers)
        self._shelf: Shelf[_TakeProgram] = Shelf()
        self.rotations = RotationTable(lambda at: torch.complex(*rotary(at, config.head_dim, config.rope_theta)))

    def take(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, cache: KVCache) -> None:
        """Write the context rows of committed positions to ``rows_T`` of every layer (Eq. 2 and 3)."""
        rotation = self.rotations.at(positions_T.tolist(), positions_T)
        with self._shelf.lock:
            rows = len(features_TF)
            program = self._shelf.get(cache, rows, (rows,), lambda rooms: _TakeProgram(self, rows, cache, rooms))
            program.run(features_TF, rotation, rows_T)

    def hidden(self, anchors: Sequence[int], positions_T: Tensor, rows_T: Tensor, cache: KVCache, plan: Plan) -> Tensor:
        """``h [R, K, d]`` after the final norm, T = R * K; the blocks' own rows go to ``rows_T``."""
        masks = [self.config.mask_token_id] * (len(positions_T) // len(anchors) - 1)
        ids_T = torch.tensor([token for anchor in anchors for token in (anchor, *masks)])
        x_Td, rotations = self._embed(ids_T), (self.rotations.at(positions_T.tolist(), positions_T),)
        hidden_Td: Tensor = self.norm(self.stack.run(x_Td, rotations, cache, rows_T, plan.seen))
        return hidden_Td.view(len(anchors), -1, hidden_Td.shape[-1])


class _TakeProgram:
    """The calls of ``take`` for T rows."""

    def __init__(self, own: CompiledBackbone, rows: int, cache: KVCache, rooms: Rooms) -> None:
        def room(name: str, width: int) -> Tensor:
            return rooms.room(name, width, rows).view(rows, width)

        heads, size = own.config.num_key_value_heads, own.config.head_dim
        projected_Td = room("projected", own.config.hidden_size)
        self._features_TF = room("features", own.config.taps_width)
        context_Td, both = room("context", own.config.hidden_size), room("both", 2 * heads * size * len(own.attentions))
        both_TBHD = both.view(rows, -1, 2 * heads, size)
        self._program = Program(
            [
                product_call(own.fc, self._features_TF, projected_Td, rooms),
                norm_call(projected_Td, context_Td, own.hidden_norm.weight, own.hidden_norm.eps),
                product_call(own.context, context_Td, both, rooms),
                *(
                    turn_call(both_TBHD[:, layer], heads, 0, cache.both(layer), norms, 0, 0)
                    for layer, norms in enumerate(own.head_norms)
                ),
            ]
        )
        self._turns = self._program.places(range(3, 3 + len(own.head_norms)), 2)

    def run(self, features_TF: Tensor, rotation_T1C: Tensor, rows_T: Tensor) -> None:
        """See ``CompiledBackbone.take``."""
        self._features_TF.copy_(features_TF)
        self._program.table[self._turns] = rotation_T1C.data_ptr(), rows_T.data_ptr()
        self._program.run()


def compiles(drafter: Drafter) -> bool:
    """Whether the drafter can run on compiled kernels: fp32 on a CPU, its sizes whole vectors."""
    config = drafter.config
    if not can_pack(drafter.norm.weight) or not can_row(drafter.embedding, config.hidden_size):
        return False
    cached = 2 * config.num_key_value_heads * config.head_dim
    heads = config.num_attention_heads * config.head_dim + cached
    widths = (heads, cached * config.num_hidden_layers, config.hidden_size, 2 * config.intermediate_size)
    return config.head_dim % 8 == config.intermediate_size % 8 == 0 and not any(width % lanes() for width in widths)


def _stack_layer(layer: DraftLayer, attention: LeanBlockAttention) -> StackLayer:
    before, inner, *after = layer.norms
    added = [None if norm is None else lean_norm(norm) for norm in after]
    return StackLayer(lean_norm(before), attention, lean_norm(inner), lean_mlp(layer.mlp), *added)


def context_weight(attention: BlockAttention) -> Tensor:
    """Of keys and values alone, for rows that ask nothing."""
    return torch.cat((_in_order(attention.k_proj.weight, attention.head_dim), attention.v_proj.weight)).detach()


def _in_order(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of each head in ``paired`` order."""
    heads: Tensor = weight.unflatten(0, (-1, head_dim))
    return heads[:, paired(head_dim)].flatten(0, 1)
