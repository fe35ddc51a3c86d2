"""The parallel stage: a small backbone that reads a whole block in one pass (DFlash).

Legend: B sequences, S context rows, L tapped layers, d hidden size, A anchors of a sequence, K slots of a
block, V_d draft vocabulary, H key/value heads, D head size. Context row i is position i of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from dspark.drafters.compiled import CompiledBackbone, compiles
from dspark.drafters.config import DSparkConfig
from dspark.foundation.errors import UserError
from dspark.nn.context import Context, ContextRows
from dspark.nn.ends import Ends
from dspark.nn.forms import rounded_to_bytes
from dspark.nn.layer import DraftLayer
from dspark.nn.lean import lean_drafter
from dspark.nn.norm import RMSNorm
from dspark.nn.packed import can_pack, frozen_linear, pack_linears, round_products
from dspark.nn.precision import for_products, under_autocast
from dspark.nn.rope import rotary
from dspark.nn.visibility import WHOLE_CONTEXT, BlockGroup, rows_before_anchors


class DFlashBackbone(nn.Module):
    """Context projection, draft layers and final norm; embedding and head are the target's.

    ``embedding [V, d]`` and ``head [V_d, d]`` are plain frozen tensors: not parameters, not in the state
    dict, and left where they are by ``.to()``. The head's rows of a pruned vocabulary are gathered once into
    a tensor of their own.
    """

    def __init__(self, config: DSparkConfig, ends: Ends) -> None:
        super().__init__()
        _check_ends(config, ends)
        self.config = config
        self.embedding = ends.embedding.detach()
        self.head, self.support = _head_rows(config, ends)
        self.packed_head: nn.Module | None = None
        self.compiled: CompiledBackbone | None = None
        """Once the drafter is packed: context, layers and final norm, which are not modules any more then."""
        self.fc = nn.Linear(config.taps_width, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(config.layer_shape) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        """Of the trained parameters (the norms are never packed, so they always tell)."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the trained parameters."""
        return self.norm.weight.device

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
        context = self.context_kv(for_products(self.project(taps_BSLd)), positions_S[None])
        return self.block_hidden(anchor_ids_BA, anchor_positions_BA, context, slots=slots)

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

    def base_logits(self, hidden: Tensor) -> Tensor:
        """``U [..., V_d]`` of ``h [..., d]`` through the frozen head, in the head's dtype."""
        hidden = hidden.to(self.head.dtype)
        return linear(hidden, self.head) if self.packed_head is None else self.packed_head(hidden)

    @torch.no_grad()
    def round_to_bytes(self) -> None:
        """Round weight matrices to bytes in groups of 32 inputs, where a packed drafter reads them as such.

        A draft of few tokens takes as long as its weights take to be read, and proposes the same with half of their
        bytes (docs/lab_log.md); what is accepted is the target's business alone. Before ``pack``.
        """
        if self.packed_head is None and compiles(self):
            for each in self.modules():
                if isinstance(each, nn.Linear) and each.out_features > 1:
                    each.weight.copy_(rounded_to_bytes(each.weight))

    def pack(self, rounds_rows: bool = False) -> None:
        """Repack the linear layers and the head for few rows (fp32 on a CPU); no training or saving after.

        Where kernels can be compiled ``compiled`` takes the place of context projection and layers. ``rounds_rows``:
        multiply in bf16 on matrix units, where there are any, as a target that does so (``Target.rounds_rows``).
        """
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
        if rounds_rows:
            round_products(self)

    def _draft_layers(self) -> list[DraftLayer]:
        return cast("list[DraftLayer]", list(self.layers))

    def _block_inputs(self, anchor_ids_BA: Tensor, slots: int) -> Tensor:
        """The anchor's embedding, then K - 1 times the mask's: ``[B, A, K, d]``."""
        masks = anchor_ids_BA.new_full((*anchor_ids_BA.shape, slots - 1), self.config.mask_token_id)
        tokens_BAK = torch.cat((anchor_ids_BA[..., None], masks), dim=-1)
        return embedding(tokens_BAK, self.embedding).to(self.dtype)


def _check_ends(config: DSparkConfig, ends: Ends) -> None:
    expected = (config.vocab_size, config.hidden_size)
    for name, matrix in (("embedding", ends.embedding), ("head", ends.head)):
        if tuple(matrix.shape) != expected:
            raise UserError(
                f"the target's {name} is {list(matrix.shape)}, the drafter was made for {list(expected)} "
                "(vocabulary, hidden size); use it with the target it was trained for"
            )


def _head_rows(config: DSparkConfig, ends: Ends) -> tuple[Tensor, Tensor | None]:
    head = ends.head.detach()
    if config.draft_ids is None:
        return head, None
    support = torch.tensor(config.draft_ids, dtype=torch.int64, device=head.device)
    return head[support], support
