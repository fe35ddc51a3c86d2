"""The curves of a run: rows of its log, and the same as TensorBoard's events where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from dspark.foundation.artifacts import json_text, write_atomic
from dspark.foundation.errors import UserError
from dspark.foundation.records import JsonlWriter, read_jsonl


class Curves:
    """Open the log of a run that stands at ``step`` of ``steps``; what a killed process wrote beyond it is taken back.

    So the log of a run that was killed and resumed is that of one that never was, its clock apart. ``events``: a folder
    for TensorBoard; UserError where that is not installed.
    """

    def __init__(self, log: Path, step: int, steps: int, events: Path | None = None) -> None:
        with ExitStack() as opened:
            self._board = None if events is None else _board(events, step + (step < steps))
            if self._board is not None:
                opened.callback(self._board.close)
            _rewind(log, step, steps)
            self._log = opened.enter_context(JsonlWriter(log))
            self._open = opened.pop_all()

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def training(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Figures of the last steps, after ``seconds`` of training in all."""
        self._log.append([{"step": step, "seconds": seconds, **figures}])
        self._draw("train", step, figures)

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        """Figures of a validation; of a list its entries are drawn, counted from 1."""
        self._log.append([{"step": step, "validation": dict(figures)}])
        for name, value in figures.items():
            several = {f"{name}/{k}": each for k, each in enumerate(value, start=1)} if isinstance(value, list) else {}
            self._draw("validation", step, several or {name: value})
        if self._board is not None:
            self._board.flush()

    def _draw(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _board(folder: Path, first: int) -> Any:  # untyped in torch
    """Events of step ``first`` and later ones are drawn anew."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "trainer.tensorboard is on, but TensorBoard is not installed; pip install 'dspark[tensorboard]', or go on"
            " without it"
        ) from error
    return SummaryWriter(str(folder), purge_step=first)


def _rewind(log: Path, step: int, steps: int) -> None:
    """Drop the rows after ``step``, and the validation that ends a run: both are written again.

    A run that begins anew where another's log lies keeps that one beside its own.
    """
    if not log.exists() or not log.stat().st_size:
        return
    JsonlWriter(log).close()  # mends an end that was cut off
    rows = [row for _, row in read_jsonl(log)] if log.stat().st_size else []
    kept = [row for row in rows if row["step"] <= step and not ("validation" in row and row["step"] == steps)]
    if rows and not step:
        log.replace(log.with_suffix(".before.jsonl"))
    elif kept != rows:
        text = "".join(json_text(row) + "\n" for row in kept)
        write_atomic(log, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
