"""A run on disk: resolved recipe, log, the state to resume from, and the drafter as it stands.

RUN/recipe.yaml   the resolved configuration; a run is only resumed with the same one
RUN/log.jsonl     one row a logged step or validation
RUN/events/       the same for TensorBoard, where it is switched on
RUN/state.pt      weights, optimiser, step; replaced whole
RUN/drafter/      native checkpoint, replaced whole
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dspark.foundation.artifacts import recover_folder, write_atomic
from dspark.foundation.errors import UserError, first_line
from dspark.foundation.settings import load_settings
from dspark.training.recipe import Recipe


class Run:
    """The folder of one run."""

    def __init__(self, folder: Path, recipe: Recipe, *, resume: bool) -> None:
        """Open or create ``folder``.

        Raises UserError where it holds another run, a state that was not asked for, or nothing to resume. A run that
        ended before its first state left nothing to protect: its recipe is replaced.
        """
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--run {folder} is a file; give the path of a folder")
        text = recipe.to_yaml()
        path = folder / "recipe.yaml"
        if resume and not path.exists():
            raise UserError(f"--resume: there is no run in {folder}; check --run, or begin one without --resume")
        if self.has_state and not resume:
            raise UserError(f"{folder} holds a run that was begun; go on with --resume, or use another --run folder")
        if self.has_state and _deciding(load_settings(Recipe, path)) != _deciding(recipe):
            raise UserError(
                f"{folder} holds a run of another recipe ({path}); use another --run folder, or its own recipe"
            )
        recover_folder(self.drafter)
        write_atomic(path, lambda temporary: _write_text(temporary, text))

    @property
    def has_state(self) -> bool:
        """Whether there is something to resume."""
        return self._state.exists()

    @property
    def _state(self) -> Path:
        return self.folder / "state.pt"

    @property
    def drafter(self) -> Path:
        """Folder of the exported drafter."""
        return self.folder / "drafter"

    @property
    def log(self) -> Path:
        """The log's path."""
        return self.folder / "log.jsonl"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.folder / "events"

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state to resume from, whole or not at all."""
        write_atomic(self._state, lambda temporary: torch.save(state, temporary))

    def load_state(self) -> dict[str, Any]:
        """The last saved state."""
        try:
            state: dict[str, Any] = torch.load(self._state, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged archive
            raise UserError(
                f"{self._state} can't be read ({first_line(error)}); remove it to begin the run anew"
            ) from error
        return state


def _deciding(recipe: Recipe) -> Recipe:
    """What decides the outcome: curves may be drawn or not."""
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"tensorboard": False})})


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
