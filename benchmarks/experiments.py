"""What a drafter's training is worth, one change at a time, all under equal processor time.

    python benchmarks/experiments.py --responses corpus/smollm2-135m.xz --json FILE
        [--steps 300] [--examples 1000] [--arms NAME ...] [--initial FOLDER] [--dtype bfloat16]

Arms from the first weights ("new") and from a trained checkpoint ("on") share their features, computed once. The base
of each kind takes ``--steps`` steps, every other arm as many as the same time allows: a few of its steps are timed in
turn with the base's, so that a machine which is slower in some minutes than in others gives nobody less. The learning
rate falls to zero over just so many. Figures are teacher-forced on held-out answers (never evaluation prompts); an arm
that is already in FILE is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch

from dspark import recipes
from dspark.data.archive import read_answers
from dspark.data.features import Example, FeatureBatch, OnlineFeatures
from dspark.drafters.drafter import Drafter
from dspark.foundation.settings import load_settings
from dspark.targets.model import load_target
from dspark.training.learner import Learner
from dspark.training.recipe import Recipe
from dspark.training.schedule import Batches
from dspark.training.start import new_drafter
from dspark.training.trainer import split_examples
from dspark.training.validation import Validation, validate

RECIPES = Path(recipes.__file__).parent
TAPS = (1, 8, 15, 22, 27, 29)  # of all recipes
BASE = ("data.max_tokens=224", "trainer.sequences=8", "loss.decay=2.5")
# A run from a trained checkpoint goes gently; a short one from the target's layers first needs cross-entropy alone.
GOING_ON = ("trainer.anchors=32", "optimizer.lr=3.0e-4")
FROM_NEW = ("trainer.anchors=12", "loss.l1_after=0.5")


@dataclass(frozen=True)
class Arm:
    """What differs from the base: settings, the first weights, which examples it may see (from 0 to 1, or by the
    temperature they were sampled at), whether it learns at all, and the recipe.
    """

    settings: tuple[str, ...] = ()
    on: bool = False
    share: float = 1.0
    warm: bool | None = None
    learns: bool = True
    recipe: str = "smollm2-135m"


def new(*settings: str, **kind: Any) -> Arm:
    """From the target's layers, unless the settings say otherwise."""
    return Arm((*FROM_NEW, *settings), **kind)


def on(*settings: str, **kind: Any) -> Arm:
    """From the trained checkpoint."""
    return Arm((*GOING_ON, *settings), on=True, **kind)


ARMS = {
    "on: as it was": on(learns=False),
    "on: base": on(),
    "new: base": new(),
    "on: lr 1e-4": on("optimizer.lr=1.0e-4"),
    "on: lr 1e-3": on("optimizer.lr=1.0e-3"),
    "new: 2 layers": new("drafter.layers=2"),
    "new: 4 layers": new("drafter.layers=4"),
    "new: L1 from the start": new("loss.l1_after=0.0"),
    "on: the paper's 0.1 CE, 0.9 TV": on("loss.hard_ce=0.1", "loss.soft_ce=0.0", "loss.l1=0.9"),
    "on: hard CE 0.5 beside": on("loss.hard_ce=0.5"),
    "on: 2 sequences of 128 anchors": on("trainer.sequences=2", "trainer.anchors=128"),
    "on: D-PACE": on("loss.position_weights=d-pace"),
    "new: random weights": new("drafter.initial=random"),
    "new: lr 3e-3": new("optimizer.lr=3.0e-3"),
    "new: K = 7": new("drafter.block_size=7"),
    "new: K = 3": new("drafter.block_size=3"),
    "new: one tap": new("drafter.target_layer_ids=[27]"),
    "new: three taps": new("drafter.target_layer_ids=[1,15,27]"),
    "new: 4,096 ids": new("drafter.draft_vocab_size=4096"),
    "new: 6,144 ids": new("drafter.draft_vocab_size=6144"),
    "new: DFlash (no sequential stage)": new("drafter.markov_rank=0"),
    "new: rank 256": new("drafter.markov_rank=256"),
    "new: gated": new("drafter.markov_head_type=gated"),
    "new: RNN": new("drafter.markov_head_type=rnn"),
    "new: window 64": new("drafter.draft_window=64"),
    "new: D-PACE": new("loss.position_weights=d-pace"),
    "on: decay 1.5": on("loss.decay=1.5"),
    "on: decay 4": on("loss.decay=4.0"),
    "new: half of the answers": new(share=0.5),
    "new: a quarter of the answers": new(share=0.25),
    "new: an eighth of the answers": new(share=0.125),
    "new: only answers at 0.2": new(warm=False),
    "new: only answers at 0.7 or 0.8": new(warm=True),
    "new: 1 layer": new("drafter.layers=1"),
    "new: K = 11": new("drafter.block_size=11"),
    "new: rank 16": new("drafter.markov_rank=16"),
    "new: bias on the top 64": new("drafter.markov_top_k=64"),
    "new: all 49,152 ids": new("drafter.draft_vocab_size=0"),
    "on: a quarter of the answers": on(share=0.25),
    "on: only answers at 0.2": on(warm=False),
    "on: only answers at 0.7 or 0.8": on(warm=True),
}


class Room:
    """What all arms share: target, answers, features."""

    def __init__(self, responses: Path, initial: Path, examples: int, dtype: str) -> None:
        self.responses, self.initial, self.dtype = responses, initial, dtype
        answers = list(read_answers(responses))
        base = self.recipe(Arm())
        self.all, held = split_examples(answers, base.data)
        _, few = split_examples(answers, base.data.model_copy(update={"held_out_percent": 99}))
        names = {example.id for example in self.all}
        self.examples = [example for example in few if example.id in names][:examples]  # in an order of hashes
        warm = {f"{r.id}/{r.turn}" for r in answers if r.sampling["temperature"] > 0.5}
        self.warm = [example.id in warm for example in self.examples]
        self.target = load_target(base.target, base.dtype, base.device, pack=False)
        self.packed = load_target(base.target, base.dtype, base.device)

        def source(some: Sequence[Example]) -> OnlineFeatures:
            dtype = getattr(torch, base.data.feature_dtype)
            return OnlineFeatures(self.packed, some, TAPS, memory_bytes=1e11, keep_dtype=dtype)

        self.features, self.held = source(self.examples), source(held[:64])
        for some in (self.held, self.features):
            for first in range(0, len(some), 8):
                some.batch(range(first, min(first + 8, len(some))))

    def recipe(self, arm: Arm) -> Recipe:
        """The arm's recipe; ``trainer.steps`` is not known yet."""
        settings = [*BASE, f"dtype={self.dtype}", f"data.responses=[{self.responses}]", *arm.settings]
        if arm.on:
            settings.append(f"drafter.initial={self.initial}")
        return load_settings(Recipe, RECIPES / f"{arm.recipe}.yaml", settings)

    def batch(self, drafter: Drafter, source: OnlineFeatures, indices: Sequence[int]) -> FeatureBatch:
        """Features of the layers that this drafter taps."""
        found = source.batch(indices)
        chosen = [TAPS.index(layer) for layer in drafter.config.target_layer_ids]
        return replace(found, taps=found.taps.unflatten(-1, (len(TAPS), -1))[..., chosen, :].flatten(-2))


class Run:
    """One arm's training over ``steps`` steps."""

    def __init__(self, room: Room, arm: Arm, steps: int) -> None:
        recipe = room.recipe(arm)
        kept = [i for i, warm in enumerate(room.warm) if arm.warm is None or warm == arm.warm]
        self._room, self._kept = room, kept[: round(len(kept) * arm.share)]
        lengths = [room.features.length(i) for i in self._kept]
        self._batches = Batches(lengths, recipe.trainer.sequences, recipe.trainer.seed)
        trainer = recipe.trainer.model_copy(update={"steps": steps})
        drafter = new_drafter(recipe, room.target, room.all)
        self.learner = Learner(recipe.model_copy(update={"trainer": trainer}), drafter)

    def learn(self) -> dict[str, float]:
        """One step."""
        indices = [self._kept[i] for i in self._batches.at(self.learner.step)]
        batch = self._room.batch(self.learner.drafter, self._room.features, indices)
        return self.learner.learn(batch) | {"answer_tokens": float(batch.supervised.sum())}


def relative(room: Room, arm: Arm, base: Arm) -> float:
    """What a step of the arm takes, in steps of the base."""
    pair = [Run(room, each, 10**6) for each in (arm, base)]
    times: list[list[float]] = [[], []]
    for _ in range(9):
        for run, taken in zip(pair, times, strict=True):
            started = time.process_time()
            run.learn()
            taken.append(time.process_time() - started)
    return statistics.median(mine / its for mine, its in zip(*(taken[2:] for taken in times), strict=True))


def run(room: Room, arm: Arm, base_steps: int) -> dict[str, Any]:
    """Train one arm for as long as ``base_steps`` of its base take and say how good it became."""
    base = ARMS["on: base" if arm.on else "new: base"]
    price = 1.0 if arm is base or not arm.learns else relative(room, arm, base)
    steps = round(base_steps / price) if arm.learns else 0
    arm_run, figures = Run(room, arm, steps), {"loss": 0.0}
    started = time.process_time()
    while arm_run.learner.step < steps:
        figures = arm_run.learn()
    spent = time.process_time() - started
    found = validated(room, arm_run.learner.drafter)
    survival = list(accumulate(found.conditional_acceptance[:3], mul))
    greedy = list(accumulate(found.greedy_acceptance[:3], mul))
    return {
        "steps": steps,
        "step_price": price,
        "seconds": spent,
        "loss": figures["loss"],
        **asdict(found),
        "first_three": 1 + sum(survival),
        "greedy_first_three": 1 + sum(greedy),
    }


def validated(room: Room, drafter: Drafter) -> Validation:
    """Teacher-forced quality on the held-out answers."""
    return validate(drafter.eval(), _Tapped(room, drafter), room.target.ends.head, sequences=8, anchors=24)


class _Tapped:
    """The held-out features as this drafter reads them."""

    def __init__(self, room: Room, drafter: Drafter) -> None:
        self._room, self._drafter = room, drafter
        self.length: Callable[[int], int] = room.held.length

    def __len__(self) -> int:
        return len(self._room.held)

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        return self._room.batch(self._drafter, self._room.held, indices)


def main() -> None:
    """Run what is missing and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--initial", type=Path, default=Path("src/dspark/assets/drafters/smollm2-135m"))
    parser.add_argument("--steps", type=int, default=300, help="of the base")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--dtype", default="auto", help="of the target while its features are computed")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    given = {
        "base_steps": options.steps,
        "examples": options.examples,
        "initial": options.initial.name,
        "dtype": options.dtype,
    }
    if others := [row["arm"] for row in rows if row.get("given") != given]:
        sys.exit(f"{options.json} has rows of other settings ({', '.join(others)}); use another file")
    done = {row["arm"] for row in rows}
    room = Room(options.responses.resolve(), options.initial.resolve(), options.examples, options.dtype)
    for name in options.arms:
        if name in done:
            continue
        row = {"arm": name, "given": given, **run(room, ARMS[name], options.steps)}
        with options.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{name:36s} {row['steps']:5d} steps  tau {row['tau']:.3f}  greedy {row['greedy_tau']:.3f}"
            f"  first three {row['first_three']:.3f} / {row['greedy_first_three']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
