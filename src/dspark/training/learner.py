"""One step after another: a drafter, its optimiser, and what a batch of features teaches it."""

from __future__ import annotations

import math
from typing import Any

import torch

from dspark.data.features import FeatureBatch
from dspark.drafters.chain import ChainDrafter
from dspark.drafters.drafter import Drafter
from dspark.foundation.devices import multiplies_bf16
from dspark.training.anchors import blocks_at, choose_anchors
from dspark.training.objective import Terms, objective
from dspark.training.outputs import Outputs
from dspark.training.recipe import Recipe
from dspark.training.schedule import generator_at, learning_rate


class Learner:
    """Everything that a step changes. What it does is decided by that, the recipe, the batch and its number alone."""

    def __init__(self, recipe: Recipe, drafter: Drafter) -> None:
        self.recipe, self.drafter = recipe, drafter
        self.step = 0
        wanted = recipe.trainer.precision
        self._bf16 = multiplies_bf16(drafter.device) if wanted == "auto" else wanted == "bfloat16"
        self._head = Outputs(drafter.head.float(), self._bf16)
        settings = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            drafter.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )

    def learn(self, batch: FeatureBatch) -> dict[str, float]:
        """One optimiser step; returns the loss, its terms and the gradient's norm, for the log.

        ArithmeticError where the gradient is not finite; nothing is updated then.
        """
        settings, optimizer = self.recipe.trainer, self.recipe.optimizer
        generator = generator_at(settings.seed, "anchors", self.step)
        slots, anchors = self._rhythm()
        unrolled = isinstance(self.drafter, ChainDrafter)
        positions, valid = choose_anchors(batch.supervised, anchors, generator, slots if unrolled else 0)
        blocks = blocks_at(batch.ids, batch.supervised, positions, valid, slots, unrolled)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings.steps, optimizer.lr, optimizer.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        done = self.step / settings.steps
        terms = objective(self.drafter.train(), batch, blocks, self.recipe.loss, done, self._bf16, self._head)
        terms.loss.backward()
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.drafter.parameters() if p.grad is not None]))
        if not math.isfinite(norm):
            raise ArithmeticError(f"step {self.step}: the gradient is not finite; nothing was updated")
        # Where it is too long the optimiser divides it as it reads it: a pass over all gradients less.
        scale = torch.tensor(norm / optimizer.clip) if norm > optimizer.clip else None
        self.optimizer.grad_scale = scale  # type: ignore[attr-defined]  # what torch's fused optimisers look for
        self.optimizer.step()
        self.step += 1
        return _figures(terms, norm)

    def _rhythm(self) -> tuple[int, int]:
        """Slots of this step's blocks and anchors of a sequence: short blocks come in larger numbers, of as many slots
        together.
        """
        settings, slots = self.recipe.trainer, self.drafter.config.block_size
        drawn = float(torch.rand((), generator=generator_at(settings.seed, "short", self.step)))
        if drawn >= settings.short_share:
            return slots, settings.anchors
        short = min(settings.short_slots, slots)
        return short, settings.anchors * slots // short

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on."""
        return {
            "step": self.step,
            "drafter": self.drafter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.step = state["step"]
        self.drafter.load_state_dict(state["drafter"])
        self.optimizer.load_state_dict(state["optimizer"])


def _figures(terms: Terms, norm: float) -> dict[str, float]:
    return {
        "loss": float(terms.loss.detach()),
        "hard_ce": terms.hard_ce,
        "soft_ce": terms.soft_ce,
        "l1": terms.l1,
        "confidence": terms.confidence,
        "gradient_norm": norm,
    }
