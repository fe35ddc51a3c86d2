"""Autoregressive drafters: one layer that reads a hidden state and the token behind it, and leaves the next hidden
state.

Pair i joins the target's hidden state at i with token i + 1 and stands at position i; its output predicts token i + 2
and takes the place of hidden state i + 1 where the target has not been there yet. Keys and values of a pair depend on
it alone, for there is no layer below.

Legend: B sequences, S positions, F = L*d tapped features, A anchors of a sequence, K slots, d hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dspark.drafters.chain_program import ChainProgram, chain_program
from dspark.drafters.compiled import compiles
from dspark.drafters.compiled_chain import CompiledChain, LeanJoin
from dspark.drafters.config import ChainConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.heads import NoMarkovHead
from dspark.drafters.pairs import ChainRoom
from dspark.kernels.machine import can_compile
from dspark.nn.context import Context, ContextRows
from dspark.nn.ends import Ends
from dspark.nn.layer import BlockAttention, LayerShape
from dspark.nn.lean import lean_drafter
from dspark.nn.mlp import GatedMLP
from dspark.nn.norm import RMSNorm
from dspark.nn.packed import can_pack, frozen_linear, pack_linears, round_products
from dspark.nn.precision import for_products, under_autocast
from dspark.nn.rope import Rotary, rotary
from dspark.nn.unrolled import UnrolledContext


class PairLayer(nn.Module):
    """``x + attention(a)``, then ``x + mlp(norm(x))``, for what ``join`` makes of a pair: x and a."""

    def __init__(self, shape: LayerShape, width: int) -> None:
        """``width``: of what attention reads."""
        super().__init__()
        self.self_attn = BlockAttention(shape, width)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.eps)
        self.mlp = GatedMLP(shape.hidden_size, shape.intermediate_size)

    @abstractmethod
    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream ``[..., d]`` and what attention reads ``[..., width]``, for hidden states and embedded
        tokens ``[..., d]``.
        """

    @abstractmethod
    def lean_join(self) -> LeanJoin:
        """``join``, frozen."""

    @abstractmethod
    def started_as(self, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this layer with which it is a target's layer, given its weights, and does not look at tokens."""

    def rows(self, hidden_BSd: Tensor, embedded_BSd: Tensor, at: Rotary) -> ContextRows:
        """Keys (normed, rotated) and values of pairs."""
        return self.self_attn.context(for_products(self.join(hidden_BSd, embedded_BSd)[1]), at)

    def forward(self, hidden_BA1d: Tensor, embedded_BA1d: Tensor, at: Rotary, context: Context) -> Tensor:
        """The next hidden states ``[B, A, 1, d]``."""
        x_BA1d, read = self.join(hidden_BA1d, embedded_BA1d)
        x_BA1d = x_BA1d + self.self_attn(read, at, context, ())
        out: Tensor = x_BA1d + self.mlp(self.post_attention_layernorm.for_products(x_BA1d))
        return out


class ChainDrafter(Drafter):
    """Token after token. In the state dict the layer is ``layers.0``."""

    config: ChainConfig
    program: ChainProgram | None

    def __init__(self, config: ChainConfig, ends: Ends) -> None:
        super().__init__(config, ends)
        self.compiled: CompiledChain | None = None
        """Once the drafter is packed: the layer, which is no module any more then."""
        self.layers = nn.ModuleList([self.make_layer(config.layer_shape)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.markov_head = NoMarkovHead(config.vocab_size, config.draft_vocab_size, 0, config.hidden_size)

    @abstractmethod
    def make_layer(self, shape: LayerShape) -> PairLayer:
        """A new layer."""

    @property
    def projection(self) -> nn.Module | None:
        """What makes the hidden states that pairs begin with of tapped ones; None: they are the same."""
        return None

    def project(self, taps: Tensor) -> Tensor:
        """The hidden states ``[..., d]`` that pairs begin with, of tapped ones ``[..., F]``."""
        return taps if self.projection is None else self.projection(taps)

    def reset(self) -> None:
        """Let hidden states begin as those of the last tapped layer."""

    @property
    def layer(self) -> PairLayer:
        """The only one."""
        return cast("PairLayer", self.layers[0])

    def rotary(self, positions: Tensor) -> Rotary:
        """Angles at ``positions [...]``."""
        return rotary(positions, self.config.head_dim, self.config.rope_theta)

    def taught(self, taps_BSF: Tensor, ids_BS: Tensor, previous_BAK: Tensor, positions_BA: Tensor) -> Tensor:
        """Training-time test: a step's hidden states are the next one's, its tokens the true ones.

        Slot j of anchor a is step j of position t = a - 1: it sits at t + j, reads token t + 1 + j and predicts token
        t + 2 + j. An anchor at position 0 has no pair and is taken as one at 1.
        """
        taps_BSF = taps_BSF if under_autocast(taps_BSF) else taps_BSF.to(self.dtype)
        hidden_BSd = self.project(taps_BSF)[:, :-1]
        at_BA = (positions_BA - 1).clamp(min=0)
        places_S = torch.arange(hidden_BSd.shape[1], device=ids_BS.device)
        rows = self.layer.rows(hidden_BSd, self.embed(ids_BS[:, 1:]), self.rotary(places_S[None]))
        context = UnrolledContext(rows, at_BA)
        hidden_BAd = hidden_BSd.gather(1, at_BA[..., None].expand(-1, -1, hidden_BSd.shape[-1]))
        hidden_BA1d, steps = hidden_BAd[:, :, None], []
        for step, embedded_BAd in enumerate(self.embed(previous_BAK).unbind(dim=2)):
            at = self.rotary(at_BA[..., None] + step)
            hidden_BA1d = self.layer(hidden_BA1d, embedded_BAd[:, :, None], at, context)
            steps.append(hidden_BA1d)
        normed: Tensor = self.norm(torch.cat(steps, dim=2))
        return normed

    def reads_bytes(self) -> bool:
        return can_compile() and can_pack(self.layer.mlp.up_proj.weight)

    def pack(self, rounds: torch.dtype | None = None) -> None:
        """Where kernels can be compiled ``compiled`` takes the place of the layer."""
        if self.packed_head is not None:
            return
        layer = self.layer
        if compiles(self):
            self.layers = nn.ModuleList()
        lean_drafter(self)
        pack_linears(self)
        if can_pack(self.head):
            self.packed_head = frozen_linear(self.head)
        if not self.layers:
            self.compiled = CompiledChain(self, layer)
        if rounds is not None:
            round_products(self, rounds)
        self.program = chain_program(self)

    def new_room(self, blocks: int, size: int) -> ChainRoom:
        return ChainRoom(self, blocks, size)
