"""Safetensors files: written whole, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dspark.foundation.artifacts import write_atomic
from dspark.foundation.errors import UserError

_NAMED = 4


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write CPU tensors atomically. As bytes through Python's own files, so that a full disk is an ordinary
    OSError.
    """
    data = save(dict(tensors), metadata={"format": "pt"})
    write_atomic(path, lambda temporary: _write_bytes(temporary, data))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises UserError where it is missing, truncated or otherwise damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected the drafter's weights in one safetensors file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); it is truncated or damaged: copy it again"
        ) from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, list[int]], where: str) -> None:
    """Raise UserError that names missing, unexpected and misshapen tensors (the first few of each)."""
    problems = [
        _listed("missing", [f"{name} {shape}" for name, shape in expected.items() if name not in found]),
        _listed("unexpected", [f"{name} {list(t.shape)}" for name, t in found.items() if name not in expected]),
        _listed(
            "of another shape",
            [
                f"{name} {list(t.shape)} (expected {expected[name]})"
                for name, t in found.items()
                if name in expected and list(t.shape) != expected[name]
            ],
        ),
    ]
    text = "; ".join(problem for problem in problems if problem)
    if text:
        raise UserError(f"{where}: the tensors don't match the configuration: {text}; use the files of one checkpoint")


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what}: {', '.join(sorted(names)[:_NAMED])}{more}"


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
