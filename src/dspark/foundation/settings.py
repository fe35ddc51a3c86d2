"""One strict typed configuration: a YAML file, a few overrides, and an error for every key that isn't known.

A room describes its own settings as a subclass of ``Settings``; composition is by nesting, never by
inheritance of files.
"""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from dspark.foundation.errors import UserError


class Settings(pydantic.BaseModel):
    """Base of every group of settings: no unknown keys, every value checked (defaults too), frozen."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    def to_yaml(self) -> str:
        """The resolved configuration, every default included, in the form that ``load_settings`` reads."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read ``path`` (YAML) as ``cls``, after applying overrides such as ``"trainer.steps=100"`` in order.

    The value of an override is YAML. Raises UserError, one line, for a missing or broken file, a malformed
    override, an unknown key (with the nearest known one) and a bad value.
    """
    path = Path(path)
    values = _read_yaml(path)
    for override in overrides:
        _apply(values, override)
    try:
        return cls.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise UserError(f"{path}: {_explain(cls, first)}{more}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML's own safe loader keeps the last of two equal keys in silence; this one refuses the second."""


def _mapping_without_repeats(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem=f"{key!r} can't be a key", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({_yaml_problem(error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, expected keys with values")
    return values


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override!r} is not understood; expected KEY.KEY=VALUE")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML ({_yaml_problem(error)})") from error
    group = values
    for depth, name in enumerate(names[:-1], start=1):
        inner = group.get(name)
        if inner is None:
            inner = group[name] = {}
        if not isinstance(inner, dict):
            raise UserError(
                f"--set {override!r}: {'.'.join(names[:depth])} is {inner!r}, a value without keys of its own"
            )
        group = inner
    group[names[-1]] = value


def _explain(cls: type[Settings], error: Any) -> str:
    dotted = ".".join(str(part) for part in error["loc"])
    known = dict.fromkeys(_keys(cls))
    if error["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}; {_nearest(dotted, list(known))}"
    message = " ".join(error["msg"].removeprefix("Value error, ").split())
    if error["type"] == "missing":
        return f"the key {dotted!r} is missing; give it a value in the file or with --set {dotted}=VALUE"
    if not dotted:
        return message
    return f"{dotted} is {reprlib.repr(error['input'])}: {message[:1].lower()}{message[1:]}"


def _nearest(dotted: str, known: list[str]) -> str:
    leaf = dotted.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        last = candidate.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, dotted, candidate).ratio()
        return max(whole, 0.9 * difflib.SequenceMatcher(None, leaf, last).ratio())

    best = max(known, key=likeness, default="")
    if best and likeness(best) >= 0.5:
        return f"did you mean {best!r}?"
    return f"known keys: {', '.join(sorted({key.partition('.')[0] for key in known}))}"


def _keys(cls: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys, those of nested groups included."""
    for name, field in cls.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted
        for group in _groups(field.annotation):
            yield from _keys(group, f"{dotted}.")


def _groups(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    if typing.get_origin(annotation) is not dict:  # the keys of a free mapping are not known beforehand
        for argument in typing.get_args(annotation):
            yield from _groups(argument)
