"""Training a drafter for a frozen target, in one process.

A step is a pure function of the recipe, the answers and its number: which examples, which anchors, which learning rate.
So a run that was killed goes on from its last state as if nothing had happened: same weights, same log, to the last bit
where the target's rows do not depend on their neighbours (fp32 with the kernels of this package).
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
import warnings
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dspark.data.archive import read_answers
from dspark.data.features import Example, FeatureSource, OnlineFeatures, examples_of
from dspark.data.prompts import held_out
from dspark.data.responses import Response
from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.drafter import Drafter
from dspark.drafters.kinds import config_of
from dspark.foundation.errors import UserError
from dspark.foundation.progress import progress
from dspark.targets.model import Target, load_target
from dspark.training.curves import Curves
from dspark.training.learner import Learner
from dspark.training.recipe import DataSettings, Recipe
from dspark.training.run import Run
from dspark.training.schedule import Batches
from dspark.training.start import new_drafter, same_drafter
from dspark.training.validation import Validation, validate

# Steps whose losses are averaged for the log and the progress bar.
_LOG_EVERY = 10


@dataclass(frozen=True)
class TrainResult:
    """What a run did; ``tokens`` counts the tokens of the sequences trained on, epochs counted anew, in this
    process.
    """

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    validation: Validation
    peak_memory_bytes: int

    def asdict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def train(recipe: Recipe, run_folder: Path, resume: bool) -> TrainResult:
    """Train as ``recipe`` says and leave the drafter in ``run_folder/drafter``; ``resume`` goes on with what is
    there.
    """
    run = Run(run_folder, recipe, resume=resume)
    responses = [response for path in recipe.data.responses for response in read_answers(path)]
    training, held = split_examples(responses, recipe.data)
    target = load_target(recipe.target, recipe.dtype, recipe.device, pack=False)
    _check_origin(responses, target)
    state = run.load_state() if run.has_state else {}
    if "config" in state:  # neither answers nor an earlier checkpoint are asked again what the drafter is
        drafter = same_drafter(target, config_of(recipe.drafter.kind, state["config"]))
    else:
        drafter = new_drafter(recipe, target, training)
    target.pack()
    trainer = Trainer(recipe, run, target, drafter, training, held)
    if state:
        trainer.load(state)
    return trainer.run_to_end()


class Trainer:
    """A run: what learns, from which features, and what is written on the way."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        target: Target,
        drafter: Drafter,
        training: list[Example],
        held: list[Example],
    ) -> None:
        self.recipe, self.run, self.target, self.drafter = recipe, run, target, drafter
        self._counts = {
            "train": len(training),
            "train_tokens": sum(len(e.ids) - e.start for e in training),
            "held_out": len(held),
        }
        self._training = self._source(training, recipe.data.feature_memory_gb * 1e9)
        # Few, and needed again at every validation: always kept.
        self._held = self._source(held[: recipe.trainer.validation_examples], math.inf)
        self._data = _digest(training, held)
        lengths = [len(example.ids) for example in training]
        self._batches = Batches(lengths, recipe.trainer.sequences, recipe.trainer.seed)
        self.learner = Learner(recipe, drafter)
        self._recent: deque[dict[str, float]] = deque(maxlen=_LOG_EVERY)
        self._seconds = 0.0

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    def run_to_end(self) -> TrainResult:
        """Steps until the recipe's number, saving and validating on the way."""
        settings, begun, tokens = self.recipe.trainer, self.step, 0
        started, before = time.perf_counter(), self._seconds
        events = self.run.events if settings.tensorboard else None
        with (
            Curves(self.run.log, begun, settings.steps, events) as curves,
            progress(settings.steps - begun, "train", "steps") as bar,
        ):
            while self.step < settings.steps:
                tokens += self._train_step()
                averages = self._averages()
                self._seconds = before + time.perf_counter() - started
                if self.step % _LOG_EVERY == 0:
                    curves.training(self.step, self._seconds, averages)
                if self.step % settings.validate_every == 0 and self.step < settings.steps:
                    self._validate_and_export(curves)
                if self.step % settings.save_every == 0 or self.step == settings.steps:
                    self.run.save_state(self.state())
                bar.advance(1, loss=averages["loss"], l1=averages["l1"])
            validation = self._validate_and_export(curves)
        seconds = time.perf_counter() - started
        return TrainResult(settings.steps, tokens, seconds, tokens / seconds, validation, _peak_memory())

    def state(self) -> dict[str, Any]:
        """Everything a later process needs."""
        return {
            **self.learner.state(),
            "data": self._data,
            "config": asdict(self.drafter.config),
            "seconds": self._seconds,
            "recent": list(self._recent),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state. UserError where it was trained on other answers: they choose the batches and the
        draft vocabulary, so the weights would mean something else.
        """
        if state.get("data") != self._data:
            raise UserError(
                f"{self.run.folder} was begun with other answers than data.responses holds now; give it the files as"
                " they were, or begin a new run"
            )
        self.learner.load(state)
        self._seconds = state.get("seconds", 0.0)  # states of earlier versions lack these two
        self._recent.extend(state.get("recent", ()))

    def _train_step(self) -> int:
        """One optimiser step; returns the tokens of its sequences."""
        batch = self._training.batch(self._batches.at(self.step))
        self._recent.append(self.learner.learn(batch))
        return int(batch.lengths.sum())

    def _validate_and_export(self, curves: Curves) -> Validation:
        settings = self.recipe.trainer
        validation = validate(
            self.drafter.eval(),
            self._held,
            self.target.ends.head,
            sequences=settings.sequences,
            anchors=settings.anchors,
        )
        curves.validation(self.step, asdict(validation))
        recipe = self.recipe.model_dump(mode="json")
        # Names, not places: a checkpoint travels, and a path of this machine means nothing elsewhere.
        recipe["data"]["responses"] = [path.name for path in self.recipe.data.responses]
        recipe["drafter"]["initial"] = Path(self.recipe.drafter.initial).name
        training = {
            "recipe": recipe,
            "step": self.step,
            "examples": self._counts,
            "validation": asdict(validation),
        }
        dtype = getattr(torch, self.recipe.drafter.export_dtype)
        save_drafter(self.run.drafter, self.drafter, self.target.identity, training, dtype)
        return validation

    def _averages(self) -> dict[str, float]:
        return {name: sum(row[name] for row in self._recent) / len(self._recent) for name in self._recent[0]}

    def _source(self, examples: list[Example], memory_bytes: float) -> FeatureSource:
        return OnlineFeatures(
            self.target,
            examples,
            self.drafter.config.target_layer_ids,
            memory_bytes=memory_bytes,
            keep_dtype=getattr(torch, self.recipe.data.feature_dtype),
        )


def split_examples(responses: list[Response], settings: DataSettings) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; raises UserError where either side is empty.

    Those held out come in an order of their own (by hash), so that the first few are as good a sample as any.
    """
    sides: tuple[list[Response], list[Response]] = ([], [])
    for response in responses:
        sides[held_out(response.id, settings.held_out_percent)].append(response)
    training, held = (examples_of(side, settings.max_tokens) for side in sides)
    if not training or not held:
        raise UserError(
            f"{len(responses)} answers leave {len(training)} to train on and {len(held)} held out; both must be"
            " at least 1: regenerate more answers, or change data.held_out_percent"
        )
    return training, sorted(held, key=lambda example: hashlib.sha256(example.id.encode()).digest())


def _check_origin(responses: list[Response], target: Target) -> None:
    """UserError for answers that can't be this target's, a warning for those that say they are another's."""
    for response in responses:
        largest = max(*response.prompt_ids, *response.output_ids)
        if largest >= target.vocab_size:
            raise UserError(
                f"data.responses: the answer to {response.id} holds the token id {largest}, the vocabulary of"
                f" {target.name} has {target.vocab_size}; regenerate the answers with this target"
            )
    others = sorted({response.model for response in responses} - {target.name})
    if others:
        warnings.warn(
            f"some answers are those of {', '.join(others)}, not of {target.name}; a drafter learns best from its own"
            " target's answers",
            stacklevel=2,
        )


def _digest(*sides: list[Example]) -> str:
    """What the answers were, their order and their split included."""
    content = json.dumps([[(e.id, e.start, e.ids) for e in side] for side in sides])
    return hashlib.sha256(content.encode()).hexdigest()


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
