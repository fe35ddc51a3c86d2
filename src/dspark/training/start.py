"""A drafter before its first step of a run: its sizes, its draft vocabulary, its first weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dspark.data.features import Example
from dspark.drafters.chain import ChainDrafter
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.config import DrafterConfig, DSparkConfig
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.initialise import initialise_chain, initialise_from_target
from dspark.drafters.kinds import config_of, drafter_of
from dspark.foundation.errors import UserError
from dspark.nn.layer import FAMILIES
from dspark.targets.model import Target
from dspark.training.recipe import Recipe


def new_drafter(recipe: Recipe, target: Target, training: Sequence[Example]) -> Drafter:
    """A drafter as ``recipe`` describes it, before its first step; the target must not be packed yet."""
    settings = recipe.drafter
    if settings.initial not in ("target", "random"):
        return _from_checkpoint(recipe, target, training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.trainer.seed)
        drafter = drafter_of(_config(recipe, target, _draft_ids(recipe, target, training)), target.ends)
        if settings.initial == "target":
            _start_as_target(drafter, recipe, target)
    return drafter.to(target.device)


def _start_as_target(drafter: Drafter, recipe: Recipe, target: Target) -> None:
    settings = recipe.drafter
    sources = range(target.num_layers - settings.layers, target.num_layers)
    if sources.start < 0:
        raise UserError(
            f"drafter.layers is {settings.layers}, but {target.name} has only {target.num_layers} to start from"
        )
    layers = [target.layer_weights(index) for index in sources]
    if isinstance(drafter, ChainDrafter):
        initialise_chain(drafter, layers[0], target.final_norm_weight())
        return
    assert isinstance(drafter, DSparkDrafter), "there are no others"
    # H_ctx starts as the last tapped layer's output, normed as the target's next layer would norm it.
    hidden_norm = target.layer_weights(max(settings.target_layer_ids) + 1).get("input_layernorm.weight")
    if hidden_norm is None:
        raise UserError(
            f"layers of {target.name} ({target.architecture}) have no norm before their attention, unlike a draft"
            " layer; start from random weights (drafter.initial=random)"
        )
    initialise_from_target(drafter, layers, final_norm=target.final_norm_weight(), hidden_norm=hidden_norm)


# What a recipe does not say, how a checkpoint was trained, and what no weight depends on.
_OF_THE_CHECKPOINT = {
    "num_anchors",
    "block_size",
    "max_position_embeddings",
    "confidence_head_with_markov",
    "step_loss_decay",
}


def same_drafter(target: Target, config: DrafterConfig) -> Drafter:
    """A drafter of this configuration, to be given the weights of a run's own state."""
    with torch.random.fork_rng(devices=[]):
        return drafter_of(config, target.ends).to(target.device)


def _from_checkpoint(recipe: Recipe, target: Target, training: Sequence[Example]) -> Drafter:
    """A drafter that was trained before, in fp32; UserError where it is not what the recipe describes.

    A draft vocabulary of another size is chosen anew.
    """
    folder = Path(recipe.drafter.initial).expanduser()
    drafter = load_drafter(folder, target.identity, target.ends, torch.float32, target.device)
    if drafter.config.kind != recipe.drafter.kind:
        raise UserError(
            f"drafter.initial: {folder} is of kind {drafter.config.kind}, the recipe's drafter.kind is"
            f" {recipe.drafter.kind}; change one of them"
        )
    if drafter.config.draft_vocab_size != (recipe.drafter.draft_vocab_size or target.vocab_size):
        drafter = with_vocabulary(drafter, target, _draft_ids(recipe, target, training))
    found = asdict(drafter.config)
    wanted = asdict(_config(recipe, target, drafter.config.draft_ids))
    for name in _OF_THE_CHECKPOINT & found.keys():
        del found[name], wanted[name]
    differing = [f"{name} {found[name]} (recipe: {wanted[name]})" for name in found if found[name] != wanted[name]]
    if differing:
        raise UserError(
            f"drafter.initial: {folder} has {', '.join(differing)}; change the recipe, or begin with other weights"
        )
    own = {"num_anchors": recipe.trainer.anchors} if isinstance(drafter.config, DSparkConfig) else _of_kind(recipe)
    drafter.config = replace(drafter.config, block_size=recipe.drafter.block_size, **own)
    return drafter


def with_vocabulary(drafter: Drafter, target: Target, draft_ids: tuple[int, ...] | None) -> Drafter:
    """The same drafter over other ids (None: all). Ids that it knows keep their rows of W_2, others begin at zero."""
    whole = same_drafter(target, replace(drafter.config, draft_ids=draft_ids))
    weights = drafter.state_dict()
    known_Dr = drafter.markov_head.output.detach()
    if known_Dr.shape[1]:
        rows_Vr = known_Dr.new_zeros(drafter.config.vocab_size, known_Dr.shape[1])
        rows_Vr[... if drafter.support is None else drafter.support] = known_Dr
        weights["markov_head.markov_w2.weight"] = rows_Vr if whole.support is None else rows_Vr[whole.support]
    whole.load_state_dict(weights)
    return whole


def _draft_ids(recipe: Recipe, target: Target, training: Sequence[Example]) -> tuple[int, ...] | None:
    size = recipe.drafter.draft_vocab_size
    answers = (token for example in training for token in example.ids[example.start :])
    return draft_vocabulary(answers, size, target.vocab_size, target.stop_ids) if size else None


def draft_vocabulary(answers: Iterable[int], size: int, vocab_size: int, always: Iterable[int]) -> tuple[int, ...]:
    """The ``size`` ids that occur most often in ``answers``, ascending; ``always`` ids are in it whatever their count.

    Ties and unused room go to the lowest ids, where tokenizers keep special and single-byte tokens.
    """
    if size > vocab_size:
        raise UserError(
            f"drafter.draft_vocab_size is {size}, the target's vocabulary {vocab_size}; use 0 for the whole of it"
        )
    kept = set(always)
    if len(kept) > size:
        raise UserError(f"drafter.draft_vocab_size is {size}, but {len(kept)} stop ids must be in it; use more")
    counts = Counter(answers)
    ranked = sorted((i for i in range(vocab_size) if i not in kept), key=lambda i: (-counts[i], i))
    return tuple(sorted(kept | set(ranked[: size - len(kept)])))


def _config(recipe: Recipe, target: Target, draft_ids: tuple[int, ...] | None) -> DrafterConfig:
    settings, model = recipe.drafter, target.config
    if getattr(model, "is_heterogeneous", False):
        raise UserError(f"{target.name} has layers of different shapes, which drafters can't copy yet; use another")
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    values: dict[str, Any] = {
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "intermediate_size": _needed(target, "intermediate_size"),
        "num_hidden_layers": settings.layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": head_dim,
        "num_target_layers": target.num_layers,
        "target_layer_ids": settings.target_layer_ids,
        "block_size": settings.block_size,
        "rope_theta": _rope_theta(model),
        "rms_norm_eps": _needed(target, "rms_norm_eps"),
        "max_position_embeddings": target.max_positions,
        "draft_ids": draft_ids,
    }
    if settings.kind == DSparkConfig.kind and model.model_type in FAMILIES:
        values["family"] = model.model_type
    return config_of(settings.kind, values | _of_kind(recipe))


def _rope_theta(model: Any) -> float:
    """Of the layers that see everything, as a draft layer does, where kinds of layers turn at different speeds."""
    rope: dict[str, Any] = getattr(model, "rope_parameters", None) or {}
    return float(rope.get("full_attention", rope).get("rope_theta", 10000.0))


def _of_kind(recipe: Recipe) -> dict[str, Any]:
    """What only drafters of the recipe's kind have."""
    settings = recipe.drafter
    if settings.kind != "dspark":
        return {"step_loss_decay": recipe.loss.step_decay}
    names = ("mask_token_id", "markov_rank", "markov_head_type", "markov_top_k", "draft_window")
    own: dict[str, Any] = {name: getattr(settings, name) for name in names}
    return own | {"enable_confidence_head": settings.confidence_head, "num_anchors": recipe.trainer.anchors}


def _needed(target: Target, name: str) -> Any:
    value = getattr(target.config, name, None)
    if value is None:
        raise UserError(
            f"{target.name} ({target.architecture}) has no {name} in its config, which a drafter of the Llama family"
            " takes from its target; train for another target"
        )
    return value
