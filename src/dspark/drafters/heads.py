"""The two small heads on the backbone: what the previous tokens add, and how sure the drafter is.

Legend: V vocabulary, V_d draft vocabulary, d hidden size, r Markov rank, K slots of a block; leading axes are free.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dspark.kernels.law import can_make_law, masses
from dspark.nn.packed import frozen_linear

Singles = NDArray[np.float32]
# Small beside the logits, so that training starts from the backbone's own distribution.
_INITIAL_STD = 0.02
_SUREST = 3e-7  # odds against the likeliest token; fp32 sums tell no smaller ones


class MarkovHead(nn.Module):
    """``B_k = W_2 m_k`` where ``m_k [r]`` sums up the previous tokens; the kinds differ in ``m_k`` alone.

    Here it is ``e_k = W_1[x_{k-1}]`` (vanilla, Eq. 5). W_1 covers the full vocabulary: any token can be an anchor.
    """

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)
        self.reset()

    def reset(self) -> None:
        """Start with a bias of exactly zero that still has a gradient: W_2 = 0, W_1 small."""
        nn.init.normal_(self.markov_w1.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.markov_w2.weight)

    @property
    def output(self) -> Tensor:
        """W_2 ``[V_d, r]``; before packing only."""
        return self.markov_w2.weight

    def embed(self, prev_ids: Tensor) -> Tensor:
        """``e = W_1[x_{k-1}]``: target ids ``[...]`` to ``[..., r]``."""
        rows: Tensor = self.markov_w1(prev_ids)
        return rows

    def step(self, hidden: Tensor, embedded: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``m_k [..., r]`` of one slot, for ``h_k [..., d]`` and ``e_k [..., r]``, and what the next slot's needs.

        ``state``: what the slot before left; None for the first.
        """
        return embedded, None

    def over_blocks(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """``m [..., K, r]`` of whole blocks whose previous tokens are known, ``h [..., K, d]``, ``e [..., K, r]``."""
        return self.step(hidden, embedded, None)[0]

    def bias(self, summed: Tensor) -> Tensor:
        """``B [..., V_d]`` of ``m [..., r]``."""
        bias: Tensor = self.markov_w2(summed)
        return bias


class GatedMarkovHead(MarkovHead):
    """``m_k = sigmoid(W_g [h_k ; e_k] + b) * e_k``."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, draft_vocab_size, rank, hidden_size)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(self, hidden: Tensor, embedded: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gate = torch.sigmoid(self.gate_proj(torch.cat((hidden, embedded), dim=-1)))
        return gate * embedded, None


class RNNHead(MarkovHead):
    """A recurrent state over all previous tokens of the block (Eq. 6).

    ``g, c, o = W [s_{k-1} ; e_k ; h_k] + b``, ``s_k = sigmoid(g) s_{k-1} + (1 - sigmoid(g)) tanh(c)``, ``s_0 = 0``, and
    ``m_k = tanh(o)``.
    """

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, draft_vocab_size, rank, hidden_size)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def step(self, hidden: Tensor, embedded: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        state = torch.zeros_like(embedded) if state is None else state
        gate, candidate, out = self.joint_proj(torch.cat((state, embedded, hidden), dim=-1)).chunk(3, dim=-1)
        keep = torch.sigmoid(gate)
        return torch.tanh(out), keep * state + (1 - keep) * torch.tanh(candidate)

    def over_blocks(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        state, summed = None, []
        for h, e in zip(hidden.unbind(-2), embedded.unbind(-2), strict=True):
            m, state = self.step(h, e, state)
            summed.append(m)
        return torch.stack(summed, dim=-2)


class NoMarkovHead(MarkovHead):
    """DFlash: no sequential stage, every slot is predicted by itself. Rank 0 and without weights."""

    _nothing: Tensor

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        nn.Module.__init__(self)
        self.register_buffer("_nothing", torch.zeros(draft_vocab_size, 0), persistent=False)

    @property
    def output(self) -> Tensor:
        """``[V_d, 0]``."""
        return self._nothing

    def reset(self) -> None:
        """Nothing to reset."""

    def embed(self, prev_ids: Tensor) -> Tensor:
        """``[..., 0]``."""
        return self.output.new_zeros(*prev_ids.shape, 0)

    def bias(self, summed: Tensor) -> Tensor:
        """Zeros."""
        return self.output.new_zeros(*summed.shape[:-1], len(self.output))


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


class ReadConfidence(nn.Module):
    """A frozen ``ConfidenceHead`` whose part of the previous token is read from a table of one number a token."""

    _of_token: Tensor | None

    def __init__(self, head: ConfidenceHead, embeddings_Vr: Tensor | None) -> None:
        """``embeddings_Vr``: W_1, where the head sees it."""
        super().__init__()
        weight_1n, bias_1 = head.proj.weight.detach(), head.proj.bias.detach().float()
        width = weight_1n.shape[1] - (0 if embeddings_Vr is None else embeddings_Vr.shape[1])
        # A frozen product and no matmul: its rows don't depend on their company, and they decide what is verified.
        self.product = frozen_linear(weight_1n[:, :width].contiguous())
        """``w^T h`` alone."""
        self._bias, self._of_token = bias_1, None
        if embeddings_Vr is not None:
            self._of_token = embeddings_Vr.detach().float() @ weight_1n[0, width:].float() + bias_1

    def forward(self, hidden: Tensor, prev_ids: Tensor) -> Tensor:
        """Logits ``[...]``, fp32, of ``h [..., d]`` and target ids ``[...]``."""
        of_hidden: Tensor = self.product(hidden).squeeze(-1).float()
        return of_hidden + (self._bias if self._of_token is None else self._of_token[prev_ids])

    @cached_property
    def by_id(self) -> Singles:
        """What an id ``[V]``, or every one ``[1]``, adds to ``w^T h``, on a CPU: of a few numbers numpy makes the same
        sum in a fraction of the time.
        """
        return (self._bias if self._of_token is None else self._of_token).numpy()


def peaks(logits: Tensor) -> Tensor:
    """How sure a drafter is of its own likeliest token: that one's log-odds ``[...]``, fp32, by its logits
    ``[..., V_d]`` (at temperature 1, whatever the request's).
    """
    logits_RV = logits.float().reshape(-1, logits.shape[-1])
    # A softmax sums each row by itself; a sum may share one row out among threads, and its company would count.
    if can_make_law(logits_RV):
        peaks_R = torch.from_numpy(peaks_of_mass(masses(logits_RV).numpy()))
    else:
        peaks_R = -(logits_RV.softmax(dim=-1).amax(dim=-1).reciprocal() - 1).clamp(min=_SUREST).log()
    return peaks_R.reshape(logits.shape[:-1])


def peaks_of_mass(mass: Singles) -> Singles:
    """The same by ``sum(exp(logits - max))``; about 15 at most (``speculation.confidence.CLAMP``)."""
    found: Singles = -np.log(np.maximum(mass - 1, _SUREST))
    return found


# By the name that checkpoints use (`markov_head_type`); rank 0 is ``NoMarkovHead`` whatever the name.
MARKOV_HEADS: dict[str, type[MarkovHead]] = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RNNHead}


def with_bias(base: Tensor, bias: Tensor, top_k: int) -> Tensor:
    """``U + B [..., V_d]``; with ``top_k`` only the largest base logits get their bias, the others stay (0: all do)."""
    if not 0 < top_k < base.shape[-1]:
        return base + bias
    ids = base.topk(top_k, dim=-1, sorted=False).indices
    return base.scatter_add(-1, ids, bias.gather(-1, ids).to(base.dtype))
