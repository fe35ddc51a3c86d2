"""One pre-norm layer of a block drafter: attention over context and own block, then the feed-forward network.

Legend: B sequences, A blocks of a sequence, K slots of a block, d hidden size, S context rows, Q query heads,
H key/value heads, G = Q / H, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dspark.nn.context import Context, ContextRows
from dspark.nn.mlp import GatedMLP
from dspark.nn.norm import RMSNorm
from dspark.nn.precision import for_products
from dspark.nn.rope import Rotary
from dspark.nn.visibility import BlockGroup


@dataclass(frozen=True)
class Family:
    """What layers of a family do besides; none has biases, all have head norms on q and k and a gated MLP.

    ``act``: its gate, by transformers' name. ``normed_sums``: what attention and MLP add is normed as well.
    """

    act: str = "silu"
    normed_sums: bool = False


FAMILIES = {"qwen3": Family(), "gemma3_text": Family("gelu_pytorch_tanh", normed_sums=True)}
"""By the name that a configuration has for them (``model_type``)."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of a layer, and its family."""

    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    family: Family = FAMILIES["qwen3"]


class BlockAttention(nn.Module):
    """Attention of a block to the context before its anchor and, in both directions, to itself (Eq. 3)."""

    def __init__(self, shape: LayerShape, width: int | None = None) -> None:
        """``width``: of its input, the hidden size if None."""
        super().__init__()
        width = width or shape.hidden_size
        self.kv_heads, self.head_dim = shape.kv_heads, shape.head_dim
        self.q_proj = nn.Linear(width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.eps)

    def context(self, context_BSd: Tensor, at: Rotary) -> ContextRows:
        """Keys (normed, rotated) and values of ``H_ctx``, which does not pass the layer's input norm."""
        k_BSHD, v_BSHD = self._keys_values(context_BSd, at)
        return ContextRows(k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2))

    def forward(self, x_BAKd: Tensor, at: Rotary, context: Context, groups: Sequence[BlockGroup]) -> Tensor:
        """``[B, A, K, d]`` to ``[B, A, K, d]``; ``groups`` say which blocks go together and what they see."""
        x_BAKd = for_products(x_BAKd)
        q_BAKQD = self.q_norm.turned(self._split(self.q_proj(x_BAKd)), at)
        q_BHGAKD = q_BAKQD.view(*q_BAKQD.shape[:3], self.kv_heads, -1, self.head_dim).permute(0, 3, 4, 1, 2, 5)
        k_BHAKD, v_BHAKD = (t.permute(0, 3, 1, 2, 4) for t in self._keys_values(x_BAKd, at))
        out_BHGAKD = context.attend(q_BHGAKD, k_BHAKD, v_BHAKD, groups)
        out: Tensor = self.o_proj(out_BHGAKD.permute(0, 3, 4, 1, 2, 5).flatten(3))
        return out

    def _keys_values(self, x: Tensor, at: Rotary) -> tuple[Tensor, Tensor]:
        return self.k_norm.turned(self._split(self.k_proj(x)), at), self._split(self.v_proj(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


class DraftLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; both sums are normed in families that do so.

    Modules have transformers' names, so ``post_attention_layernorm`` is the MLP's input norm in one family and the norm
    of what attention adds in another.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(shape.hidden_size, shape.eps)

        self.input_layernorm = norm()
        self.self_attn = BlockAttention(shape)
        self.post_attention_layernorm = norm()
        if shape.family.normed_sums:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.mlp = GatedMLP(shape.hidden_size, shape.intermediate_size, shape.family.act)

    @property
    def norms(self) -> tuple[RMSNorm, RMSNorm, RMSNorm | None, RMSNorm | None]:
        """Of attention's input, of the MLP's, and of what either adds (None: as it is)."""
        if hasattr(self, "pre_feedforward_layernorm"):
            after = self.post_attention_layernorm, self.post_feedforward_layernorm
            return self.input_layernorm, self.pre_feedforward_layernorm, *after
        return self.input_layernorm, self.post_attention_layernorm, None, None

    def forward(self, x_BAKd: Tensor, at: Rotary, context: Context, groups: Sequence[BlockGroup]) -> Tensor:
        """``[B, A, K, d]`` to ``[B, A, K, d]``."""
        before, inner, after, last = self.norms
        attended = self.self_attn(before.for_products(x_BAKd), at, context, groups)
        x_BAKd = x_BAKd + (attended if after is None else after(attended))
        made = self.mlp(inner.for_products(x_BAKd))
        out: Tensor = x_BAKd + (made if last is None else last(made))
        return out
