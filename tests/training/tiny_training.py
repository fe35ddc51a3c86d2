"""A recipe, answers and a trainer for the tiny target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dspark.data.features import Example
from dspark.targets.model import Target
from dspark.targets.session import TargetSession
from dspark.training.recipe import Recipe
from dspark.training.run import Run
from dspark.training.start import new_drafter
from dspark.training.trainer import Trainer
from tiny import VOCAB, tiny_target


def recipe(lr: float = 3e-3, data: dict[str, Any] | None = None, **trainer: Any) -> Recipe:
    """A recipe for the tiny target."""
    sizes = {"steps": 6, "sequences": 4, "anchors": 4, "validate_every": 3, "save_every": 3, "precision": "float32"}
    return Recipe.model_validate(
        {
            "data": {"responses": ["answers.jsonl"], "feature_dtype": "float32"} | (data or {}),
            "drafter": {
                "layers": 2,
                "block_size": 7,
                "markov_rank": 16,
                "draft_vocab_size": 0,
                "target_layer_ids": [0, 1],
                "mask_token_id": VOCAB - 1,
            },
            "optimizer": {"lr": lr},
            "trainer": sizes | trainer,
        }
    )


def chain_recipe(kind: str = "eagle3", lr: float = 3e-3, unrolled: int = 7, **trainer: Any) -> Recipe:
    """The same for an autoregressive drafter, unrolled over so many steps."""
    own = {"block_size": unrolled, "target_layer_ids": [0, 1]} if kind == "eagle3" else {"block_size": 1}
    drafter = {"kind": kind, "layers": 1, "draft_vocab_size": 0, "target_layer_ids": [2]} | own
    loss = {"soft_ce": 1.0, "l1": 0.0, "position_weights": "steps"}
    rest = recipe(lr, **trainer).model_dump(exclude={"drafter", "loss"})
    return Recipe.model_validate(rest | {"drafter": drafter, "loss": loss})


def conversations(target: Target, count: int, prompt: int = 6, answer: int = 24) -> list[Example]:
    """Greedy answers of the target to random prompts; no four neighbours are of one length."""
    examples = []
    for number in range(count):
        length = answer + number % 4
        ids = torch.randint(3, VOCAB, (prompt,), generator=torch.Generator().manual_seed(number)).tolist()
        session = TargetSession(target, capacity=prompt + length)
        step = session.extend(ids, 1)
        for _ in range(length):
            ids.append(int(step.logits_NV[-1].argmax()))
            step = session.extend(ids[-1:], 1)
        examples.append(Example(str(number), ids, prompt))
    return examples


def new_trainer(folder: Path, examples: list[Example], settings: Recipe, resume: bool = False, **sizes: int) -> Trainer:
    target = tiny_target(sharpness=3.0, pack=False, **sizes)
    drafter = new_drafter(settings, target, examples)
    return Trainer(settings, Run(folder, settings, resume=resume), target, drafter, examples, examples[:4])
