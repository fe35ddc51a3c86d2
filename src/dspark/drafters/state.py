"""One request on the drafter: its growing context and the drafting of a block.

Legend: K slots of a block, V_d draft vocabulary, n rows committed since the last round, L tapped layers,
d hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.drafters.dspark import DSparkDrafter
from dspark.nn.context import ContextCache
from dspark.speculation.loop import Draft, Sample


class DSparkState:
    """The drafter's side of one request (``speculation.loop.DrafterState``).

    The context holds one row for every committed token but the anchor: it grows by the n + 1 rows of x_0..x_n
    after a round with n accepted drafts. Rows of a block are never kept.
    """

    def __init__(self, drafter: DSparkDrafter) -> None:
        self.drafter = drafter
        self.length = 0
        self._context = [ContextCache() for _ in range(drafter.config.num_hidden_layers)]

    @torch.inference_mode()
    def draft(self, ids: list[int], features: Tensor | None, sample: Sample) -> Draft:
        """Draft K tokens after ``ids[-1]``, the anchor.

        ``ids``: all committed target ids. ``features [n, L*d]``: tapped hidden states of the positions
        committed since the last call, in order, never the anchor's own (None: there are none). ``sample(slot,
        logits [V_d])`` draws. Raises ValueError, before anything changes, where the rows and the committed
        ids don't match.
        """
        rows = 0 if features is None else features.shape[0]
        if self.length + rows != len(ids) - 1:
            raise ValueError(
                f"the drafter's context has {self.length} rows and was given {rows} more, but {len(ids)} "
                f"committed tokens need {len(ids) - 1}: one for every token before the anchor"
            )
        if features is not None and rows:
            self._extend(features)
        hidden_Kd = self._hidden(ids[-1])
        return self._chain(ids[-1], hidden_Kd, sample)

    def _extend(self, features: Tensor) -> None:
        drafter = self.drafter
        taps = features.to(device=drafter.device, dtype=drafter.dtype)[None]
        end = self.length + taps.shape[1]
        positions = torch.arange(self.length, end, device=drafter.device)[None]
        for cache, rows in zip(self._context, drafter.context_kv(drafter.project(taps), positions), strict=True):
            cache.append(rows.k, rows.v)
        self.length = end

    def _hidden(self, anchor: int) -> Tensor:
        """The parallel stage: ``h [K, d]``."""
        device = self.drafter.device
        anchor_id = torch.tensor([[anchor]], device=device)
        position = torch.tensor([[self.length]], device=device)
        return self.drafter.block_hidden(anchor_id, position, self._context, whole_context=True)[0, 0]

    def _chain(self, anchor: int, hidden_Kd: Tensor, sample: Sample) -> Draft:
        """The sequential stage (Eq. 4): a slot's logits wait for the token before it alone."""
        drafter = self.drafter
        base_KV = drafter.base_logits(hidden_Kd)
        # The sum's own dtype where head and drafter differ, so that the rows can take the bias in place.
        logits_KV = base_KV.to(torch.promote_types(base_KV.dtype, drafter.dtype))
        draft_ids = drafter.config.draft_ids
        chain = torch.full((hidden_Kd.shape[0] + 1,), anchor, device=hidden_Kd.device)
        tokens: list[int] = []
        probs: list[Tensor] = []
        for slot, logits_V in enumerate(logits_KV):
            index, probs_V = sample(slot, logits_V.add_(drafter.markov_bias(chain[slot : slot + 1])[0]))
            tokens.append(index if draft_ids is None else draft_ids[index])
            probs.append(probs_V)
            chain[slot + 1] = tokens[-1]
        confidence = None
        if drafter.confidence_head is not None:
            confidence = drafter.confidence_logits(hidden_Kd, chain[:-1])
        return Draft(tokens=tokens, probs=torch.stack(probs), support=drafter.support, confidence=confidence)
