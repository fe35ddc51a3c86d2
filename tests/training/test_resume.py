"""A run on disk: killed, resumed, refused, and its curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import conversations, new_trainer, recipe

from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.config import DSparkConfig
from dspark.foundation.errors import UserError
from dspark.foundation.records import read_jsonl
from dspark.foundation.settings import load_settings
from dspark.training.curves import Curves
from dspark.training.recipe import Recipe
from dspark.training.run import Run
from dspark.training.start import new_drafter, same_drafter
from dspark.training.trainer import Trainer
from tiny import tiny_target


def test_a_resumed_run_does_not_need_the_checkpoint_it_began_with(tmp_path: Path) -> None:
    target, examples = tiny_target(sharpness=3.0, pack=False), conversations(tiny_target(sharpness=3.0), 6)
    settings = recipe()
    sized = settings.drafter.model_copy(update={"draft_vocab_size": 32})
    first = new_drafter(settings.model_copy(update={"drafter": sized}), target, examples)
    save_drafter(tmp_path / "secret-place" / "first", first, target.identity)
    sized = sized.model_copy(update={"initial": str(tmp_path / "secret-place" / "first")})
    trainer = new_trainer(tmp_path / "run", examples, settings.model_copy(update={"drafter": sized}))
    trainer.run_to_end()
    state = trainer.run.load_state()
    again = same_drafter(target, DSparkConfig(**state["config"]))
    again.load_state_dict(state["drafter"])
    assert again.config.draft_ids == first.config.draft_ids
    assert "secret-place" not in (trainer.run.drafter / "manifest.json").read_text()


@pytest.mark.parametrize(("memory", "precision"), [(0.0, "float32"), (1.0, "float32"), (1.0, "bfloat16")])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    memory: float, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = conversations(tiny_target(sharpness=3.0), 10)
    data = {"feature_memory_gb": memory, "feature_dtype": "bfloat16"}
    settings = recipe(steps=24, validate_every=7, save_every=2, precision=precision, data=data)
    whole = new_trainer(tmp_path / "whole", examples, settings)
    whole.run_to_end()
    killed = new_trainer(tmp_path / "killed", examples, settings)
    step = Trainer._train_step

    def dies(self: Trainer) -> int:
        if self.step == 15:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run_to_end()
    monkeypatch.undo()
    with pytest.raises(UserError, match="--resume"):
        new_trainer(tmp_path / "killed", examples, settings)
    other = new_trainer(tmp_path / "killed", examples[::-1], settings, resume=True)
    with pytest.raises(UserError, match="other answers"):
        other.load(other.run.load_state())
    resumed = new_trainer(tmp_path / "killed", examples, settings, resume=True)
    resumed.load(resumed.run.load_state())
    assert resumed.step == 14
    resumed.run_to_end()
    for name, tensor in whole.drafter.state_dict().items():
        assert torch.equal(resumed.drafter.state_dict()[name], tensor), name
    assert curves_of(resumed.run) == curves_of(whole.run)
    ended = new_trainer(tmp_path / "killed", examples, settings, resume=True)
    ended.load(ended.run.load_state())
    ended.run_to_end()
    assert curves_of(ended.run) == curves_of(whole.run), "a run that had ended says nothing twice"


def curves_of(run: Run) -> list[dict[str, Any]]:
    """Rows of the log, the clock apart, which may only rise."""
    rows = [row for _, row in read_jsonl(run.log)]
    seconds = [row.pop("seconds") for row in rows if "seconds" in row]
    assert seconds == sorted(seconds)
    return rows


def test_the_curves_can_be_drawn_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    examples = conversations(tiny_target(sharpness=3.0), 6)
    settings = recipe(steps=20, validate_every=10, tensorboard=True)
    trainer = new_trainer(tmp_path, examples, settings)
    validation = trainer.run_to_end().validation
    drawn = EventAccumulator(str(trainer.run.events))
    drawn.Reload()
    assert [event.step for event in drawn.Scalars("train/loss")] == [10, 20]
    assert [event.step for event in drawn.Scalars("validation/tau")] == [10, 20]
    assert drawn.Scalars("validation/greedy_acceptance/2")[-1].value == pytest.approx(validation.greedy_acceptance[1])


def test_without_tensorboard_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'dspark\[tensorboard\]'"):
        Curves(tmp_path / "log.jsonl", 0, 1, tmp_path / "events")
    Curves(tmp_path / "log.jsonl", 0, 1).__exit__(None, None, None)


def test_what_a_killed_process_logged_beyond_its_state_is_taken_back(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with Curves(log, 0, 30) as curves:
        for step in (10, 20, 30):
            curves.training(step, float(step), {"loss": 1.0})
            curves.validation(step, {"tau": 2.0})
    with log.open("a") as file:
        file.write('{"step": 40, "los')

    def steps_of(path: Path) -> list[int]:
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    for step, kept in ((30, [10, 10, 20, 20, 30]), (25, [10, 10, 20, 20]), (0, [])):
        Curves(log, step, 30).__exit__(None, None, None)
        assert steps_of(log) == kept
    assert steps_of(tmp_path / "log.before.jsonl") == [10, 10, 20, 20], "a new run does not lose another's log"


def test_a_run_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    begun = Run(tmp_path, recipe(), resume=False)
    begun.save_state({"step": 1})
    with pytest.raises(UserError, match="another recipe"):
        Run(tmp_path, recipe(seed=1), resume=True)
    assert Run(tmp_path, recipe(), resume=True).load_state() == {"step": 1}
    assert Run(tmp_path, recipe(tensorboard=True), resume=True).load_state() == {"step": 1}
    written = (tmp_path / "recipe.yaml").read_text().splitlines()
    older = [line for line in written if "tensorboard" not in line and "position_weights" not in line]
    (tmp_path / "recipe.yaml").write_text("\n".join(older))
    assert Run(tmp_path, recipe(), resume=True).load_state() == {"step": 1}, "begun before there was such a setting"


def test_a_run_that_ended_before_its_first_state_may_be_begun_differently(tmp_path: Path) -> None:
    Run(tmp_path, recipe(), resume=False)
    Run(tmp_path, recipe(seed=1), resume=False)
    assert load_settings(Recipe, tmp_path / "recipe.yaml") == recipe(seed=1)


def test_a_run_that_is_not_there_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        Run(tmp_path / "typo", recipe(), resume=True)
    assert not (tmp_path / "typo").exists()
