"""The DSpark drafter: the DFlash backbone plus a sequential head and a confidence head.

Legend: B sequences, A anchors, K slots of a block, d hidden size, V_d draft vocabulary; other leading axes
are free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.drafters.blocks import DrafterBlocks
from dspark.drafters.compiled import compiles
from dspark.drafters.config import DSparkConfig
from dspark.drafters.dflash import DFlashBackbone
from dspark.drafters.frozen_heads import frozen_head
from dspark.drafters.heads import MARKOV_HEADS, ConfidenceHead, NoMarkovHead, ReadConfidence, with_bias
from dspark.drafters.program import draft_program
from dspark.nn.ends import Ends


class DSparkDrafter(DFlashBackbone):
    """Semi-autoregressive: hidden states of a block in parallel, its tokens one after another (Eq. 4).

    The state dict has exactly DeepSpec's names, without the two frozen matrices. ``prev_ids`` are target ids
    throughout; logits are over the draft vocabulary, whose target ids are ``support [V_d]`` (None: the whole
    vocabulary).
    """

    config_type = DSparkConfig

    def __init__(self, config: DSparkConfig, ends: Ends) -> None:
        super().__init__(config, ends)
        head = MARKOV_HEADS[config.markov_head_type] if config.markov_rank else NoMarkovHead
        self.markov_head = head(config.vocab_size, config.draft_vocab_size, config.markov_rank, config.hidden_size)
        self.confidence_head: ConfidenceHead | None = None
        if config.enable_confidence_head:
            self.confidence_head = ConfidenceHead(config.hidden_size + self._confidence_rank)
        self.read_confidence: ReadConfidence | None = None
        """The confidence head once the drafter is packed."""

    def pack(self, rounds: torch.dtype | None = None) -> None:
        """See ``DFlashBackbone.pack``."""
        if self.confidence_head is not None and self.read_confidence is None:
            embeddings = self.markov_head.markov_w1.weight if self._confidence_rank else None
            self.read_confidence = ReadConfidence(self.confidence_head, embeddings)
        if self.packed_head is None and compiles(self):
            self.markov_head = frozen_head(self.markov_head)
        super().pack(rounds)
        self.program = draft_program(self)

    @property
    def markov_top_k(self) -> int:
        return self.config.markov_top_k

    def new_room(self, blocks: int, size: int) -> DrafterBlocks:
        return DrafterBlocks(self, blocks, size)

    def next_logits(
        self, base: Tensor, hidden: Tensor, prev_ids: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """``U_k + B_k [..., V_d]`` (Eq. 4) of one slot, for its base logits, ``h_k [..., d]`` and the tokens before it.

        ``state``: what the slot before left of its head's; None for the first.
        """
        head = self.markov_head
        summed, state = head.step(hidden, head.embed(prev_ids), state)
        return with_bias(base, head.bias(summed), self.markov_top_k), state

    def logits(self, hidden: Tensor, prev_ids: Tensor) -> Tensor:
        """``U + B [..., K, V_d]`` (Eq. 4) of ``h [..., K, d]`` and the previous tokens ``[..., K]``."""
        head = self.markov_head
        summed = head.over_blocks(hidden, head.embed(prev_ids))
        return with_bias(self.base_logits(hidden), head.bias(summed), self.markov_top_k)

    def confidence(self, hidden: Tensor, prev_ids: Tensor, peaks: Tensor) -> Tensor:
        """``confidence_logits`` or, of a drafter without a confidence head, the ``peaks [...]`` of its own laws."""
        return peaks if self.confidence_head is None else self.confidence_logits(hidden, prev_ids)

    def confidence_logits(self, hidden: Tensor, prev_ids: Tensor) -> Tensor:
        """Logits ``[...]``, fp32, of c_k (Eq. 7) for ``h [..., d]`` and the previous tokens ``[...]``.

        It never sees x_k itself. Only for a drafter with a confidence head.
        """
        assert self.confidence_head is not None, "this drafter has no confidence head"
        if self.read_confidence is not None:
            read: Tensor = self.read_confidence(hidden, prev_ids)
            return read
        return self.taught_confidence(hidden, self.markov_head.embed(prev_ids))

    def taught_confidence(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """``confidence_logits`` as they are trained, for ``e [..., r]`` of the previous tokens."""
        assert self.confidence_head is not None, "this drafter has no confidence head"
        features = [hidden, embedded] if self.config.confidence_head_with_markov else [hidden]
        logits: Tensor = self.confidence_head(*features)
        return logits.float()

    @property
    def _confidence_rank(self) -> int:
        """Numbers of the previous token that the confidence head sees."""
        return self.config.markov_rank if self.config.confidence_head_with_markov else 0
