"""What a drafter is: every size and choice, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from dspark.drafters.heads import MARKOV_HEADS
from dspark.drafters.vocabulary import check_draft_ids
from dspark.foundation.errors import UserError
from dspark.nn.layer import FAMILIES, LayerShape

_POSITIVE = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "block_size",
    "num_target_layers",
    "max_position_embeddings",
    "num_anchors",
    "rope_theta",
    "rms_norm_eps",
    "step_loss_decay",
}
# By the annotation of a field; a bool is no number here.
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a name"),
}


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """What all drafters have, by DeepSpec's names, plus ``draft_ids``: the target ids that can be drafted (None: all).

    ``target_layer_ids``: id i is the output of the target's layer i, -1 its embedding's output. ``block_size``: drafts
    of a round at most. Raises UserError for anything that does not fit together.
    """

    kind: ClassVar[str]
    """As recipes call it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    block_size: int = 7
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    draft_ids: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads is {self.num_attention_heads}; "
                f"expected a multiple of num_key_value_heads, {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}; rotary embedding needs an even one")
        self._check_taps()
        if self.draft_ids is not None:
            check_draft_ids(self.draft_ids, self.vocab_size)

    @property
    def draft_vocab_size(self) -> int:
        """Width V_d of the drafter's logits."""
        return self.vocab_size if self.draft_ids is None else len(self.draft_ids)

    @property
    def taps_width(self) -> int:
        """Width L*d of the concatenated hidden states of the tapped layers."""
        return len(self.target_layer_ids) * self.hidden_size

    @property
    def layer_shape(self) -> LayerShape:
        """Sizes of one layer."""
        return LayerShape(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
        )

    def _check_kinds(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            kind, words = _KINDS.get(str(each.type), (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and each.type != "bool"):
                raise UserError(f"{each.name} is {value!r}; expected {words}")
            if each.name in _POSITIVE and not value > 0:
                raise UserError(f"{each.name} is {value!r}; expected more than 0")

    def _check_taps(self) -> None:
        """The last layer is not allowed, because its output is only known after the final norm."""
        ids, last = self.target_layer_ids, self.num_target_layers - 1
        if not ids or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise UserError(f"target_layer_ids is {list(ids)}; expected at least one layer number")
        if list(ids) != sorted(set(ids)):
            raise UserError(f"target_layer_ids is {list(ids)}; expected ascending layers without repeats")
        if ids[0] < -1 or ids[-1] >= last:
            raise UserError(
                f"target_layer_ids is {list(ids)}; expected -1 (the embedding) to {last - 1}: the target "
                f"has {last + 1} layers, and the last one's output is only known after the final norm"
            )


@dataclass(frozen=True, kw_only=True)
class DSparkConfig(DrafterConfig):
    """Of a block drafter, plus ``markov_top_k``: only so many of the largest base logits get the sequential head's bias
    (0: all do), and ``draft_window``: a slot sees only so many positions, its own included (0: all before its anchor).

    ``family``: of its layers (``nn.layer.FAMILIES``). ``markov_rank`` 0: no sequential stage at all (DFlash).
    """

    kind = "dspark"

    mask_token_id: int
    family: str = "qwen3"
    markov_rank: int = 256
    markov_head_type: str = "vanilla"
    markov_top_k: int = 0
    draft_window: int = 0
    enable_confidence_head: bool = True
    confidence_head_with_markov: bool = True
    num_anchors: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in FAMILIES:
            raise UserError(f"family is {self.family!r}; expected one of: {', '.join(FAMILIES)}")
        self._check_heads()
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise UserError(
                f"mask_token_id is {self.mask_token_id}; expected an id of the target's vocabulary, "
                f"0 to {self.vocab_size - 1}"
            )

    @property
    def layer_shape(self) -> LayerShape:
        return replace(super().layer_shape, family=FAMILIES[self.family])

    def _check_heads(self) -> None:
        for name in ("markov_rank", "markov_top_k", "draft_window"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if 0 < self.draft_window < self.block_size:
            raise UserError(
                f"draft_window is {self.draft_window}; expected 0 or at least the block_size of {self.block_size}, for"
                " a slot sees its whole block"
            )
        if self.markov_head_type not in MARKOV_HEADS:
            raise UserError(
                f"markov_head_type is {self.markov_head_type!r}, which is not supported; "
                f"expected one of: {', '.join(MARKOV_HEADS)}"
            )


@dataclass(frozen=True, kw_only=True)
class ChainConfig(DrafterConfig):
    """Of a drafter that drafts one token after another, with one layer: ``block_size`` is also the number of unrolled
    steps of its training, which weigh ``step_loss_decay`` to the power of their number, from 0.
    """

    num_hidden_layers: int = 1
    step_loss_decay: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_hidden_layers != 1:
            raise UserError(f"num_hidden_layers is {self.num_hidden_layers}; {self.kind} drafters have 1")


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(ChainConfig):
    """Of Eagle3."""

    kind = "eagle3"


@dataclass(frozen=True, kw_only=True)
class MTPConfig(ChainConfig):
    """Of MTP-1: one drafted token, from the target's own last hidden state."""

    kind = "mtp"
    block_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size != 1:
            raise UserError(f"block_size is {self.block_size}; MTP-1 drafts 1 token")

    def _check_taps(self) -> None:
        """The last layer alone, which a target hands over behind its final norm."""
        if self.target_layer_ids != (self.num_target_layers - 1,):
            raise UserError(
                f"target_layer_ids is {list(self.target_layer_ids)}; MTP-1 reads the last layer alone, "
                f"[{self.num_target_layers - 1}]"
            )
