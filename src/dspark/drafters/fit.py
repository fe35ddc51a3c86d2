"""Whether a drafter fits a target: refused where it can't work, a warning where it may draft badly."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from dspark.drafters.config import DrafterConfig
from dspark.foundation.errors import UserError
from dspark.foundation.identity import ModelIdentity
from dspark.nn.ends import Ends

# What makes a drafter another target's, and how to say it. Names differ freely: the same model has many.
_MUST_MATCH = {
    "architecture": "architecture",
    "hidden_size": "hidden size",
    "vocab_size": "vocabulary size",
    "num_layers": "number of layers",
    "config_hash": "configuration hash",
    "tokenizer_hash": "tokenizer hash",
}
_CONSEQUENCE = "the output stays exact, but fewer drafts may be accepted"


def check_identity(trained_for: ModelIdentity, found: ModelIdentity, path: Path) -> None:
    """Raise UserError for another architecture, shape or tokenizer; warn for other weights alone."""
    for name, words in _MUST_MATCH.items():
        expected, actual = getattr(trained_for, name), getattr(found, name)
        if expected != actual:
            raise UserError(
                f"{path}: trained for {trained_for.name} with {words} {expected}, but {found.name} has "
                f"{actual}; use the target it was trained for, or another drafter"
            )
    if trained_for.weights_hash != found.weights_hash:
        warnings.warn(
            f"{path}: trained for {trained_for.name} (weights {trained_for.weights_hash[:12]}), but the "
            f"target is {found.name} (weights {found.weights_hash[:12]}); {_CONSEQUENCE}",
            stacklevel=3,
        )


def check_sizes(config: DrafterConfig, target: ModelIdentity, path: Path) -> None:
    """Raise UserError where vocabulary, hidden size or number of layers differ: all that a bare configuration
    tells.
    """
    pairs = {
        "vocab_size": (config.vocab_size, target.vocab_size),
        "hidden_size": (config.hidden_size, target.hidden_size),
        "num_target_layers": (config.num_target_layers, target.num_layers),
    }
    for name, (expected, actual) in pairs.items():
        if expected != actual:
            raise UserError(
                f"{path}: made for a target with {name} {expected}, but {target.name} has {actual}; "
                "use the target it was trained for, or another drafter"
            )


def compare_matrices(own: Ends, target: Ends, name: str, path: Path) -> None:
    """Warn where a checkpoint's copies of embedding and head are not the target's (both rounded to bf16).

    DeepSpec's format doesn't say which target it is for; this is the only trace of it.
    """
    pairs = {"embedding": (own.embedding, target.embedding), "head": (own.head, target.head)}
    others = [what for what, (mine, theirs) in pairs.items() if not _equal_in_bf16(mine, theirs)]
    if others:
        warnings.warn(
            f"{path}: its copy of the {' and the '.join(others)} is not that of the target {name}: "
            f"it was trained for other weights; {_CONSEQUENCE}",
            stacklevel=3,
        )


def _equal_in_bf16(mine: Tensor, theirs: Tensor) -> bool:
    return torch.equal(mine.to(torch.bfloat16), theirs.detach().to(device=mine.device, dtype=torch.bfloat16))
