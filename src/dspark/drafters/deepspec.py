"""A drafter's `config.json` in DeepSpec's layout: a flat Qwen3 configuration plus the drafter's own keys.

MTP-1 and layers of Gemma 3, which the format does not know, are written alike, under architectures of their own. What
would change the computation and is not supported is refused here, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspark.drafters.config import ChainConfig, DrafterConfig, DSparkConfig, Eagle3Config, MTPConfig
from dspark.foundation.errors import UserError
from dspark.nn.layer import FAMILIES

_BLOCK_DRAFTERS = {"Qwen3DSparkModel": "qwen3", "Gemma3DSparkModel": "gemma3_text"}  # and their families
_CHAINS: dict[str, type[ChainConfig]] = {"Qwen3Eagle3Model": Eagle3Config, "Qwen3MTPModel": MTPConfig}
_QWEN3 = "qwen3"  # the family of all others

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_target_layers",
    "rms_norm_eps",
    "max_position_embeddings",
)
_BLOCKS = ("mask_token_id", "block_size", "markov_rank")
_STEPS = {"ttt_length": "block_size", "step_loss_decay": "step_loss_decay"}
_OWN = ("markov_top_k", "draft_window")  # not the format's, and 0 where they are not there
# Constants of all families: written as they are, and a checkpoint with another value is another model.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
}
# What readers of the format expect to find and what has no meaning for a drafter.
_FILLER: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.02,
    "max_window_layers": 28,
    "pad_token_id": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def config_from_deepspec(values: Mapping[str, Any], draft_ids: tuple[int, ...] | None = None) -> DrafterConfig:
    """Read a `config.json`. ``draft_ids``: the draft vocabulary that the checkpoint's tensors carry.

    Raises UserError that names the key: another architecture or family, a missing key, a feature that is not
    supported.
    """
    architecture = _check_family(values)
    of_kind = _BLOCKS if architecture in _BLOCK_DRAFTERS else tuple(_STEPS)
    missing = [name for name in (*_SAME_NAME, *of_kind, "target_layer_ids") if values.get(name) is None]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}; expected the keys of a {architecture} checkpoint")
    taps = values["target_layer_ids"]
    if not isinstance(taps, list):
        raise UserError(f"target_layer_ids is {taps!r}; expected a list of layer numbers")
    common = {name: values[name] for name in _SAME_NAME}
    common |= {"target_layer_ids": tuple(taps), "rope_theta": _rope_theta(values), "draft_ids": draft_ids}
    if architecture in _CHAINS:
        return _CHAINS[architecture](**common, **{ours: values[theirs] for theirs, ours in _STEPS.items()})
    return DSparkConfig(
        **common,
        family=_BLOCK_DRAFTERS[architecture],
        **{name: values[name] for name in _BLOCKS},
        markov_head_type=values.get("markov_head_type", "vanilla"),
        **{name: values.get(name, 0) for name in _OWN},
        # Absent means false to every reader of the format.
        enable_confidence_head=values.get("enable_confidence_head", False),
        confidence_head_with_markov=values.get("confidence_head_with_markov", False),
        num_anchors=values.get("num_anchors", 512),
    )


def config_to_deepspec(config: DrafterConfig, dtype: str) -> dict[str, Any]:
    """`config.json` with ``dtype`` such as "bfloat16".

    The draft vocabulary has no place in this format, and neither have ``markov_top_k`` and ``draft_window``: they are
    there only where they are used.
    """
    family = config.family if isinstance(config, DSparkConfig) else _QWEN3
    values: dict[str, Any] = {"model_type": family, "hidden_act": FAMILIES[family].act, "dtype": dtype}
    values |= {name: getattr(config, name) for name in _SAME_NAME}
    values |= {name: fixed for name, fixed in _FIXED.items() if fixed is not None}
    values |= _FILLER
    values |= {
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "target_layer_ids": list(config.target_layer_ids),
    }
    values |= _blocks(config) if isinstance(config, DSparkConfig) else _steps(config)
    return dict(sorted(values.items()))


def _blocks(config: DSparkConfig) -> dict[str, Any]:
    """What only block drafters have."""
    names = (*_BLOCKS, "markov_head_type", "enable_confidence_head", "confidence_head_with_markov", "num_anchors")
    architecture = next(name for name, family in _BLOCK_DRAFTERS.items() if family == config.family)
    values: dict[str, Any] = {"architectures": [architecture]}
    values |= {name: getattr(config, name) for name in names}
    return values | {name: value for name in _OWN if (value := getattr(config, name))}


def _steps(config: DrafterConfig) -> dict[str, Any]:
    """What only autoregressive ones have."""
    architecture = next(name for name, kind in _CHAINS.items() if kind is type(config))
    values = {theirs: getattr(config, ours) for theirs, ours in _STEPS.items()}
    return values | {"architectures": [architecture], "draft_num_hidden_layers": config.num_hidden_layers}


def _check_family(values: Mapping[str, Any]) -> str:
    """The architecture."""
    architectures, family = values.get("architectures"), values.get("model_type")
    known = [[name] for name in (*_BLOCK_DRAFTERS, *_CHAINS)]
    if architectures not in known:
        raise UserError(
            f"config.json: architectures is {architectures!r}, which is not supported; expected "
            f"{' or '.join(map(str, known))}"
        )
    architecture = str(architectures[0])
    expected = _BLOCK_DRAFTERS.get(architecture, _QWEN3)
    if family != expected:
        raise UserError(f"config.json: model_type is {family!r}, which is not supported; expected {expected!r}")
    for name, fixed in (_FIXED | {"hidden_act": FAMILIES[expected].act}).items():
        if values.get(name, fixed) != fixed:
            raise UserError(f"config.json: {name} is {values[name]!r}, which is not supported; expected {fixed!r}")
    kinds = values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or set(kinds) != {"full_attention"}):
        raise UserError(
            f"config.json: layer_types is {kinds!r}, which is not supported; expected full_attention throughout"
        )
    return architecture


def _rope_theta(values: Mapping[str, Any]) -> float:
    rope = values.get("rope_parameters") or {}
    plain = isinstance(rope, Mapping) and rope.get("rope_type", "default") == "default"
    if not plain or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"config.json: rope_parameters is {rope!r}, which is not supported; expected rope_type 'default'"
        )
    theta = rope.get("rope_theta", values.get("rope_theta"))
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise UserError(f"config.json: rope_theta is {theta!r}; expected a number, in rope_parameters or by itself")
    return float(theta)
