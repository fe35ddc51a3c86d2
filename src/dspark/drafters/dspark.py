"""The DSpark drafter: the DFlash backbone plus a sequential head and a confidence head.

Legend: B sequences, A anchors, K slots of a block, d hidden size, V_d draft vocabulary; other leading axes
are free.
"""

from __future__ import annotations

from torch import Tensor

from dspark.drafters.chain import GreedyChain, greedy_chain
from dspark.drafters.config import DSparkConfig
from dspark.drafters.dflash import DFlashBackbone
from dspark.drafters.heads import MARKOV_HEADS, ConfidenceHead
from dspark.nn.ends import Ends


class DSparkDrafter(DFlashBackbone):
    """Semi-autoregressive: hidden states of a block in parallel, its tokens one after another (Eq. 4).

    The state dict has exactly DeepSpec's names, without the two frozen matrices. ``prev_ids`` are target ids
    throughout; logits are over the draft vocabulary, whose target ids are ``support [V_d]`` (None: the whole
    vocabulary).
    """

    def __init__(self, config: DSparkConfig, ends: Ends) -> None:
        super().__init__(config, ends)
        head = MARKOV_HEADS[config.markov_head_type]
        self.markov_head = head(config.vocab_size, config.draft_vocab_size, config.markov_rank)
        self.greedy_chain: GreedyChain | None = None
        """The sequential stage of greedy requests, once the drafter is packed."""
        self.confidence_head: ConfidenceHead | None = None
        if config.enable_confidence_head:
            rank = config.markov_rank if config.confidence_head_with_markov else 0
            self.confidence_head = ConfidenceHead(config.hidden_size + rank)

    def pack(self) -> None:
        """See ``DFlashBackbone.pack``."""
        super().pack()
        self.greedy_chain = greedy_chain(self)

    def markov_bias(self, prev_ids: Tensor) -> Tensor:
        """``B [..., V_d]`` after the previous tokens ``prev_ids [...]`` (Eq. 5)."""
        bias: Tensor = self.markov_head(prev_ids)
        return bias

    def logits(self, hidden: Tensor, prev_ids: Tensor) -> Tensor:
        """``U + B [..., V_d]`` (Eq. 4) of ``h [..., d]`` and the previous tokens ``[...]``."""
        return self.base_logits(hidden) + self.markov_bias(prev_ids)

    def confidence_logits(self, hidden: Tensor, prev_ids: Tensor) -> Tensor:
        """Logits ``[...]``, fp32, of c_k (Eq. 7) for ``h [..., d]`` and the previous tokens ``[...]``.

        It never sees x_k itself. Only for a drafter with a confidence head.
        """
        assert self.confidence_head is not None, "this drafter has no confidence head"
        features = [hidden]
        if self.config.confidence_head_with_markov:
            features.append(self.markov_head.embed(prev_ids))
        logits: Tensor = self.confidence_head(*features)
        return logits.float()
