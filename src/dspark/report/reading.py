"""Files and folders of records, told apart by their keys; whatever is none is refused or left out by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dspark.foundation.artifacts import read_json, sha256_file
from dspark.foundation.errors import UserError
from dspark.foundation.records import read_jsonl
from dspark.report.records.kind import Kind
from dspark.report.records.kinds import KINDS, NO_RECORDS
from dspark.report.records.record import Record, known

_SUFFIXES = (".json", ".jsonl")
_LOG, _RECIPE = "log.jsonl", "recipe.yaml"
_DIGITS = 12  # of a digest, to tell files apart


@dataclass(frozen=True)
class Found:
    """A record with its kind, and what that made of it: its figures, and what they can't be read without."""

    kind: Kind[Any]
    record: Record
    value: Any
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Reading:
    """All records, in the order they were named in, and files of folders that are none."""

    found: tuple[Found, ...]
    left_out: tuple[str, ...]


def read(runs: Sequence[Path]) -> Reading:
    """Files that hold records, and folders, of which every such file that lies in them (not those of folders below).

    UserError for a place that is missing, a file that is broken or no record, and a folder without any.
    """
    found: dict[Path, Found] = {}
    left_out: list[str] = []
    for run in runs:
        if not run.is_dir():
            found.setdefault(run.resolve(), _found(run))
            continue
        files = sorted(each for each in run.iterdir() if each.suffix in _SUFFIXES and each.is_file())
        known = {each: kind for each in files if isinstance(kind := _kind_of(each), Kind)}
        if not known:
            raise UserError(_nothing(run, files))
        found |= {each.resolve(): _read(each, kind) for each, kind in known.items() if each.resolve() not in found}
        left_out += [_name(each) for each in files if each not in known]
    return Reading(tuple(found.values()), tuple(left_out))


def _found(path: Path) -> Found:
    kind = _kind_of(path)
    if isinstance(kind, str):
        raise UserError(f"{path}: {kind}")
    return _read(path, kind)


def _read(path: Path, kind: Kind[Any]) -> Found:
    rows = tuple(row for _, row in read_jsonl(path)) if path.suffix == ".jsonl" else (read_json(path),)
    record = Record(_name(path), sha256_file(path)[:_DIGITS], rows, _recipe_beside(path))
    try:
        value, made = kind.read(record), record.data.get("made", {})
        facts = {**kind.facts(record), **known(made, made)}
        kind.section([value])  # figures that do not fit together are found here, where the file is known
        return Found(kind, record, value, facts)
    except KeyError as error:
        what = f"lacks {error}"
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        what = f"is broken ({error})"
    raise UserError(f"{path}: this record ({kind.name}) {what}; write it again with `{kind.command}`")


def _kind_of(path: Path) -> Kind[Any] | str:
    """The kind of its record; what it holds instead, and what was expected, where that is none."""
    if path.suffix not in _SUFFIXES:
        there = "is no record" if path.exists() else "is not there"
        return f"{there}; expected a folder, or a .json or .jsonl file that a verb wrote ({_verbs()})"
    first = next(read_jsonl(path))[1] if path.suffix == ".jsonl" else read_json(path)
    for kind in KINDS:
        if kind.is_of(first):
            return kind
    for keys, what in NO_RECORDS.items():
        if keys <= first.keys():
            return f"holds {what}"
    held = ", ".join(list(first)[:6]) or "nothing"
    return f"holds {held}, which is no record of a verb; expected what one of these wrote: {_verbs()}"


def _verbs() -> str:
    return "; ".join(f"`{kind.command}`" for kind in KINDS)


def _nothing(folder: Path, files: Sequence[Path]) -> str:
    """Why a folder without records has none."""
    if not files:
        return f"{folder}: has no .json or .jsonl files; expected what one of these wrote: {_verbs()}"
    return f"{folder}: holds no record; {files[0].name} {_kind_of(files[0])}"


def _recipe_beside(path: Path) -> Mapping[str, Any]:
    """Of the log of a run; empty where there is none."""
    recipe = path.with_name(_RECIPE)
    if path.name != _LOG or not recipe.is_file():
        return {}
    try:
        found = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{recipe}: can't be read ({error}); expected the recipe that `dspark train` left") from error
    return found if isinstance(found, dict) else {}


def _name(path: Path) -> str:
    """Folder and file: the same wherever the folder lies."""
    path = path.resolve()
    return f"{path.parent.name}/{path.name}"
