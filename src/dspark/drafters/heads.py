"""The two small heads on the backbone: what the previous token adds, and how sure the drafter is.

Legend: V vocabulary, V_d draft vocabulary, d hidden size, r Markov rank; leading axes are free.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Small beside the logits, so that training starts from the backbone's own distribution.
_INITIAL_STD = 0.02


class VanillaMarkovHead(nn.Module):
    """``B_k = W_2 W_1[x_{k-1}]`` (Eq. 5). W_1 covers the full vocabulary: any token can be an anchor."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)
        self.reset()

    def reset(self) -> None:
        """Start with a bias of exactly zero that still has a gradient: W_2 = 0, W_1 small."""
        nn.init.normal_(self.markov_w1.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.markov_w2.weight)

    def embed(self, prev_ids: Tensor) -> Tensor:
        """``W_1[x_{k-1}]``: target ids ``[...]`` to ``[..., r]``."""
        rows: Tensor = self.markov_w1(prev_ids)
        return rows

    def forward(self, prev_ids: Tensor) -> Tensor:
        """Bias ``[..., V_d]`` after the previous tokens ``prev_ids [...]`` (target ids)."""
        bias: Tensor = self.markov_w2(self.embed(prev_ids))
        return bias


class ConfidenceHead(nn.Module):
    """Logit of ``c_k = sigmoid(w^T [h_k ; W_1[x_{k-1}]] + b)`` (Eq. 7)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(features, 1)
        self.reset()

    def reset(self) -> None:
        """Start at c_k near one half."""
        nn.init.normal_(self.proj.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.proj.bias)

    def forward(self, *features: Tensor) -> Tensor:
        """Logits ``[...]`` of features ``[..., n_i]`` that are concatenated in order."""
        logits: Tensor = self.proj(torch.cat(features, dim=-1))
        return logits.squeeze(-1)


# By the name that checkpoints use (`markov_head_type`).
MARKOV_HEADS: dict[str, type[VanillaMarkovHead]] = {"vanilla": VanillaMarkovHead}
