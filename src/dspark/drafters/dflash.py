"""The parallel stage: a small backbone that reads a whole block in one pass (DFlash).

Legend: B sequences, S context rows, L tapped layers, d hidden size, A anchors of a sequence, K slots of a
block, V_d draft vocabulary, H key/value heads, D head size. Context row i is position i of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dspark.drafters.compiled import CompiledBackbone, compiles
from dspark.drafters.config import DSparkConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.program import DraftProgram
from dspark.nn.context import Context, ContextRows
from dspark.nn.ends import Ends
from dspark.nn.layer import DraftLayer
from dspark.nn.lean import lean_drafter
from dspark.nn.norm import RMSNorm
from dspark.nn.packed import can_pack, frozen_linear, pack_linears, round_products
from dspark.nn.precision import under_autocast
from dspark.nn.rope import rotary
from dspark.nn.visibility import WHOLE_CONTEXT, BlockGroup, rows_before_anchors


class DFlashBackbone(Drafter):
    """Context projection, draft layers and final norm."""

    config: DSparkConfig
    program: DraftProgram | None

    def __init__(self, config: DSparkConfig, ends: Ends) -> None:
        super().__init__(config, ends)
        self.compiled: CompiledBackbone | None = None
        """Once the drafter is packed: context, layers and final norm, which are not modules any more then."""
        self.fc = nn.Linear(config.taps_width, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config.layer_shape) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, taps_BSLd: Tensor, anchor_ids_BA: Tensor, anchor_positions_BA: Tensor, slots: int | None = None
    ) -> Tensor:
        """The whole parallel stage of training: ``h [B, A, K, d]`` of the tapped hidden states ``[B, S, L*d]``,
        of any floating dtype.

        ``slots``: K, the block size if None. Sequences are padded at the end: rows from an anchor on are never seen,
        whatever they hold.
        """
        positions_S = torch.arange(taps_BSLd.shape[1], device=taps_BSLd.device)
        taps_BSLd = taps_BSLd if under_autocast(taps_BSLd) else taps_BSLd.to(self.dtype)
        context = self.context_kv(self.hidden_norm.for_products(self.fc(taps_BSLd)), positions_S[None])
        return self.block_hidden(anchor_ids_BA, anchor_positions_BA, context, slots=slots)

    def taught(self, taps_BSF: Tensor, ids_BS: Tensor, previous_BAK: Tensor, positions_BA: Tensor) -> Tensor:
        hidden: Tensor = self(taps_BSF, previous_BAK[..., 0], positions_BA, previous_BAK.shape[-1])
        return hidden

    def project(self, taps_BSLd: Tensor) -> Tensor:
        """``H_ctx [B, S, d]`` of the tapped hidden states ``[B, S, L*d]`` (Eq. 2)."""
        context: Tensor = self.hidden_norm(self.fc(taps_BSLd))
        return context

    def context_kv(self, context_BSd: Tensor, positions_BS: Tensor) -> list[ContextRows]:
        """For every layer the keys (normed, rotated) and values ``[B, H, S, D]`` of ``H_ctx`` (Eq. 3)."""
        at = rotary(positions_BS, self.config.head_dim, self.config.rope_theta)
        return [layer.self_attn.context(context_BSd, at) for layer in self._draft_layers()]

    def block_hidden(
        self,
        anchor_ids_BA: Tensor,
        anchor_positions_BA: Tensor,
        context: Sequence[Context],
        *,
        whole_context: bool = False,
        slots: int | None = None,
    ) -> Tensor:
        """``h [B, A, K, d]`` after the final norm, for A blocks of each sequence at once.

        ``slots``: K, the block size that the drafter was trained for if None.

        Slot j of a block sits at position anchor + j and predicts the token at anchor + j + 1. A block sees
        the context rows strictly before its anchor (of these the nearest, where there is a window) and, in both
        directions, itself; never another block.
        ``whole_context``: there is one block a sequence and every context row is before its anchor
        (decoding), so that nothing needs a mask.
        """
        config, slots = self.config, slots or self.config.block_size
        x_BAKd = self._block_inputs(anchor_ids_BA, slots)
        slots_K = torch.arange(slots, device=anchor_positions_BA.device)
        at = rotary(anchor_positions_BA[..., None] + slots_K, config.head_dim, config.rope_theta)
        if whole_context:
            assert anchor_ids_BA.shape[1] == 1, "several blocks of one sequence can't do without a mask"
            groups: Sequence[BlockGroup] = WHOLE_CONTEXT
        else:
            query_groups = config.num_attention_heads // config.num_key_value_heads
            assert isinstance(context[0], ContextRows), "only a context computed at once is seen in part"
            rows = context[0].length
            groups = rows_before_anchors(anchor_positions_BA, rows, slots, query_groups, config.draft_window)
        for layer, rows_of_layer in zip(self._draft_layers(), context, strict=True):
            x_BAKd = layer(x_BAKd, at, rows_of_layer, groups)
        hidden: Tensor = self.norm(x_BAKd)
        return hidden

    def reads_bytes(self) -> bool:
        return compiles(self)

    def pack(self, rounds: torch.dtype | None = None) -> None:
        """Where kernels can be compiled ``compiled`` takes the place of context projection and layers."""
        if self.packed_head is not None:
            return
        if compiles(self):
            self.compiled = CompiledBackbone(self)
            self.layers = nn.ModuleList()
            del self.fc, self.hidden_norm
        lean_drafter(self)
        pack_linears(self)
        if can_pack(self.head):
            self.packed_head = frozen_linear(self.head)
        if rounds is not None:
            round_products(self, rounds)

    def _draft_layers(self) -> list[DraftLayer]:
        return cast("list[DraftLayer]", list(self.layers))

    def _block_inputs(self, anchor_ids_BA: Tensor, slots: int) -> Tensor:
        """The anchor's embedding, then K - 1 times the mask's: ``[B, A, K, d]``."""
        masks = anchor_ids_BA.new_full((*anchor_ids_BA.shape, slots - 1), self.config.mask_token_id)
        tokens_BAK = torch.cat((anchor_ids_BA[..., None], masks), dim=-1)
        return self.embed(tokens_BAK)
