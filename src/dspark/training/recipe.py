"""What a training run is: one strict configuration, saved with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from dspark.foundation.settings import Settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class DataSettings(Settings):
    """Answers of the target and how their features are held."""

    responses: tuple[Path, ...] = Field(min_length=1)
    max_tokens: Positive = 512
    """Conversations are cut at this many tokens, prompt included."""
    held_out_percent: Annotated[int, Field(gt=0, lt=100)] = 5
    """Share of ids, by hash, that is never trained on: validation and every development choice use it."""
    feature_memory_gb: Annotated[float, Field(ge=0.0)] = 6.0
    """Features of the target are kept up to this size and computed anew beyond it."""
    feature_dtype: Literal["float32", "bfloat16"] = "bfloat16"


# What only block drafters have.
_OF_BLOCKS = ("markov_rank", "markov_head_type", "markov_top_k", "draft_window", "confidence_head", "mask_token_id")


class DrafterSettings(Settings):
    """Shape of the drafter; sizes that are not here are the target's own."""

    kind: Literal["dspark", "eagle3", "mtp"] = "dspark"
    """A block drafter (DFlash where it has neither head), or an autoregressive one of one layer."""
    layers: Positive = 3
    block_size: Positive = 7
    """Drafts of a round; of an autoregressive drafter also the unrolled steps of its training."""
    markov_rank: Annotated[int, Field(ge=0)] = 64
    """0: no sequential stage."""
    markov_head_type: Literal["vanilla", "gated", "rnn"] = "vanilla"
    markov_top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the largest base logits get the sequential head's bias; 0: all do."""
    draft_window: Annotated[int, Field(ge=0)] = 0
    """A slot sees only so many positions, its own included; 0: all before its anchor."""
    confidence_head: bool = True
    draft_vocab_size: Annotated[int, Field(ge=0)] = 8192
    """The most frequent ids of the training answers; 0 drafts over the whole vocabulary. Where ``initial`` is a
    checkpoint with as many ids, they stay."""
    target_layer_ids: tuple[int, ...] = Field(min_length=1)
    mask_token_id: Annotated[int, Field(ge=0)] | None = None
    """Of a block drafter, which can't do without."""
    initial: Annotated[str, Field(min_length=1)] = "target"
    """First weights: from the target's last layers ("target"), "random", or those of the checkpoint in this folder."""
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the exported weights; those trained are fp32, and the state to resume from keeps that."""

    @pydantic.model_validator(mode="after")
    def _only_what_the_kind_has(self) -> DrafterSettings:
        fields = type(self).model_fields
        foreign = [name for name in _OF_BLOCKS if getattr(self, name) != fields[name].default]
        if self.kind == "dspark" and self.mask_token_id is None:
            raise ValueError("a drafter of kind dspark needs mask_token_id, an id that the target never writes")
        if self.kind != "dspark" and foreign:
            raise ValueError(f"a drafter of kind {self.kind} has no {', '.join(foreign)}; leave that out")
        return self


class LossSettings(Settings):
    """Weights of the loss terms (Eq. 9-12; soft cross-entropy beside the hard one) and of the slots."""

    hard_ce: Weight = 0.0
    soft_ce: Weight = 0.5
    l1: Weight = 1.0
    confidence: Weight = 0.3
    l1_after: Share = 0.0
    """The L1 term joins after this share of the steps: cross-entropy first, total variation later."""
    position_weights: Literal["exponential", "d-pace", "steps"] = "exponential"
    """Of the slots: exp(-(k-1)/decay), or what each adds to the expected accepted length as the drafter is now, or
    ("steps") each slot's mean by itself, weighing step_decay^(k-1) (training-time test)."""
    decay: Annotated[float, Field(gt=0.0)] = 4.0
    step_decay: Annotated[float, Field(gt=0.0)] = 0.8


class OptimizerSettings(Settings):
    """AdamW with linear warm-up and a cosine to zero."""

    lr: Annotated[float, Field(gt=0.0)] = 1.5e-3
    warmup: Share = 0.04
    weight_decay: Weight = 0.0
    clip: Annotated[float, Field(gt=0.0)] = 1.0


class TrainerSettings(Settings):
    """Length and rhythm of a run."""

    steps: Positive = 1600
    sequences: Positive = 8
    anchors: Positive = 24
    """Blocks of a sequence in a step."""
    short_share: Share = 0.0
    """Steps of so large a share, drawn one by one, have blocks of ``short_slots`` and as many more of them: the first
    slots decide most, and their lesson costs less there."""
    short_slots: Positive = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the drafter's own products, and on a CPU of the losses' too; weights, norms, softmax and sums of losses are
    fp32. "auto": bf16 where the hardware multiplies it, else fp32."""
    seed: int = 0
    validate_every: Positive = 200
    validation_examples: Positive = 40
    save_every: Positive = 100
    tensorboard: bool = False
    """Draw the log's curves for TensorBoard as well, in the run's folder ``events``."""


class Recipe(Settings):
    """Everything that decides the outcome of a run."""

    target: str = "smollm2-135m"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the target, whose features are what the drafter sees when it serves; the drafter's is trainer.precision."""
    device: str = "auto"
    data: DataSettings
    drafter: DrafterSettings
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    trainer: TrainerSettings = TrainerSettings()

    @pydantic.model_validator(mode="after")
    def _unrolled_drafters_learn_step_by_step(self) -> Recipe:
        if self.drafter.kind != "dspark" and self.loss.position_weights != "steps":
            raise ValueError(
                f"loss.position_weights is {self.loss.position_weights}; a drafter of kind {self.drafter.kind} learns"
                " with 'steps'"
            )
        return self
