"""What an evaluation keeps: a folder with a row for every answer, from which a killed run goes on.

``run.json`` says what was asked for, ``samples.jsonl`` holds what came of it. All figures can be worked out from the
rows alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from dspark.evaluation.evaluate import Heard, Run, Task, Trial
from dspark.evaluation.identity import Comparison
from dspark.foundation.artifacts import json_text, read_json, write_json
from dspark.foundation.errors import UserError
from dspark.foundation.records import JsonlWriter, read_jsonl
from dspark.speculation.acceptance import Finish, Round

RUN, SAMPLES = "run.json", "samples.jsonl"


class Samples:
    """The trials in a folder. Opened once; every trial that was kept is on the disk."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open ``folder``, or make it. ``settings``, JSON values, are all that decides what a trial comes to.

        Raises UserError where it holds trials of other settings, or a row that is none, or another process writes.
        """
        self._path, said = folder / SAMPLES, folder / RUN
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; expected a folder, or nothing yet, for the samples of a run")
        self._writer = JsonlWriter(self._path)
        try:
            if said.is_file():
                _check_same(folder, read_json(said), json.loads(json_text(dict(settings))))
            elif self._path.stat().st_size:
                raise UserError(f"{folder} has {SAMPLES} but no {RUN} that says of what; choose another folder")
            else:
                write_json(said, settings)
            self._kept = {trial.task.key: trial for trial in self._read()}
        except BaseException:
            self._writer.close()
            raise

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, task: Task) -> Trial | None:
        """The trial of ``task`` where there is one; UserError where the same name was another prompt."""
        trial = self._kept.get(task.key)
        if trial is not None and trial.task != task:
            raise UserError(
                f"{self._path} holds another prompt of the name {task.id!r} (turn {task.turn} of"
                f" {task.benchmark or task.domain}); the prompts have changed: choose another folder"
            )
        return trial

    def keep(self, trial: Trial) -> None:
        """Write a trial; it is on the disk when this returns."""
        self._writer.append([row_of(trial)])
        self._kept[trial.task.key] = trial

    def __enter__(self) -> Samples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def _read(self) -> list[Trial]:
        rows = read_jsonl(self._path) if self._path.stat().st_size else ()
        return [trial_of(row, f"{self._path}, line {line}") for line, row in rows]


def row_of(trial: Trial) -> dict[str, Any]:
    """The JSONL row of a trial: its task, by way the output ids and the rounds in columns, the comparisons with plain's
    text, and what confidence said.
    """
    return {
        **asdict(trial.task),
        "runs": {way: _columns(run) for way, run in trial.runs.items()},
        "comparisons": {way: asdict(each) for way, each in trial.comparisons.items()},
        "heard": {way: asdict(each) for way, each in trial.heard.items()},
    }


def trial_of(row: Mapping[str, Any], where: str) -> Trial:
    """What ``row_of`` wrote; UserError, naming ``where``, for anything else."""
    try:
        task = Task(**{name: row[name] for name in Task.__dataclass_fields__})
        runs = {way: Run(_rounds(run), run["seconds"]) for way, run in row["runs"].items()}
        comparisons = {way: Comparison(**each) for way, each in row["comparisons"].items()}
        heard = {way: _heard(each) for way, each in row["heard"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: is no sample of an evaluation ({error!r}); remove that line") from error
    return Trial(task, runs, comparisons, heard)


def _columns(run: Run) -> dict[str, Any]:
    rounds = run.rounds
    return {
        "seconds": run.seconds,
        "finish": rounds[-1].finish,
        "output_ids": run.ids,
        "gained": [len(each.tokens) for each in rounds],
        "drafted": [each.drafted for each in rounds],
        "verified": [each.verified for each in rounds],
        "accepted": [each.accepted for each in rounds],
        "source": [each.source for each in rounds],
    }


def _rounds(stored: Mapping[str, Any]) -> Sequence[Round]:
    columns = (stored[name] for name in ("gained", "drafted", "verified", "accepted", "source"))
    rounds, begun, last = [], 0, len(stored["gained"]) - 1
    for index, (gained, drafted, verified, accepted, source) in enumerate(zip(*columns, strict=True)):
        finish: Finish | None = stored["finish"] if index == last else None
        tokens = tuple(stored["output_ids"][begun : begun + gained])
        rounds.append(Round(index, tokens, drafted, verified, accepted, finish, source))
        begun += gained
    if not rounds or begun != len(stored["output_ids"]):
        raise ValueError(f"{len(rounds)} rounds of {begun} tokens beside {len(stored['output_ids'])} output ids")
    return tuple(rounds)


def _heard(stored: Mapping[str, Any]) -> Heard:
    """JSON has no NaN; it comes back as null."""
    oracle = [[math.nan if each is None else each for each in row] for row in stored["oracle"]]
    return Heard(**(dict(stored) | {"oracle": oracle}))


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    kept, asked = _flat(there), _flat(here)
    names = [name for name in kept | asked if kept.get(name) != asked.get(name)]
    if names:
        told = ", ".join(f"{name} is {kept.get(name)!r} there and {asked.get(name)!r} here" for name in names)
        raise UserError(f"{folder} holds samples of another run: {told}; choose another folder, or the same settings")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
