"""A run on disk: resolved recipe, log, the state to resume from, and the drafter as it stands.

RUN/recipe.yaml   the resolved configuration; a run is only resumed with the same one
RUN/log.jsonl     one row a logged step or validation
RUN/state/        weights, optimiser, step; replaced whole
RUN/drafter/      native checkpoint, replaced whole
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dspark.foundation.artifacts import folder_atomic, write_atomic
from dspark.foundation.errors import UserError
from dspark.training.recipe import Recipe

_STATE = "state.pt"


class Run:
    """The folder of one run."""

    def __init__(self, folder: Path, recipe: Recipe, *, resume: bool) -> None:
        """Open or create ``folder``; raises UserError where it holds another run, or a state that was not asked for."""
        self.folder = folder
        text = recipe.to_yaml()
        path = folder / "recipe.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{folder} holds a run of another recipe ({path}); use another --run folder, or its own recipe"
            )
        if self.has_state and not resume:
            raise UserError(f"{folder} holds a run that was begun; go on with --resume, or use another --run folder")
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, lambda temporary: _write_text(temporary, text))

    @property
    def has_state(self) -> bool:
        """Whether there is something to resume."""
        return (self.folder / "state" / _STATE).exists()

    @property
    def drafter(self) -> Path:
        """Folder of the exported drafter."""
        return self.folder / "drafter"

    @property
    def log(self) -> Path:
        """The log's path."""
        return self.folder / "log.jsonl"

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state to resume from, whole or not at all."""
        with folder_atomic(self.folder / "state", marker=_STATE) as temporary:
            torch.save(state, temporary / _STATE)

    def load_state(self) -> dict[str, Any]:
        """The last saved state."""
        try:
            state: dict[str, Any] = torch.load(self.folder / "state" / _STATE, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged archive
            raise UserError(
                f"{self.folder / 'state'} can't be read ({error}); remove it to begin the run anew"
            ) from error
        return state


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
