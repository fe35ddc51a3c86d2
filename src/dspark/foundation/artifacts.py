"""Files and folders that are either complete or absent.

Everything is written beside its destination under a temporary name, flushed to the disk and renamed, so that
a process that is killed half-way leaves the previous version, and never half of the new one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dspark.foundation.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put that in the place of ``path``.

    Parents are made. On any failure the temporary file is removed and ``path`` is as it was. The temporary
    name keeps the suffix, since some writers choose a format by it; a symbolic link is followed, not
    replaced. Raises UserError when the disk (or a quota) is full.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise
    sync(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` atomically as indented JSON; numbers that JSON lacks (nan, inf) become null."""
    text = json_text(obj, indent=2) + "\n"
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError where the file is missing, unreadable, broken or not an object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); expected a JSON file") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path}: not valid JSON ({error}); write it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def json_text(obj: Any, indent: int | None = None) -> str:
    """JSON text of ``obj`` that any reader takes: numbers that JSON lacks (nan, inf) become null."""
    try:
        return json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_finite(obj), ensure_ascii=False, allow_nan=False, indent=indent)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises UserError where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


@contextmanager
def folder_atomic(path: Path, *, marker: str | None = "manifest.json") -> Iterator[Path]:
    """Yield a new temporary folder beside ``path`` that takes the place of ``path`` when the body succeeds.

    On failure the temporary folder is removed and ``path`` is as it was. An existing folder is replaced only
    when it is empty or holds ``marker`` (None: always), so a wrong path can't wipe a folder that is not ours:
    UserError, before any work is done. What a kill between the two renames of a replacement leaves is put
    right by ``recover_folder``, which comes first here.
    """
    path = Path(path).resolve()
    recover_folder(path)
    _check_replaceable(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            sync(item)
        sync(temporary)
        _swap_folder(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise_if_full(error, path)
        raise
    sync(path.parent)


def recover_folder(path: Path) -> None:
    """Bring back the folder that a kill in the middle of its replacement left as ``.NAME.<hex>.old``.

    Where ``path`` is there, such leftovers are removed.
    """
    path = Path(path).resolve()
    for old in path.parent.glob(f".{glob.escape(path.name)}.????????.old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)


def raise_if_full(error: BaseException, path: Path) -> None:
    """Raise a UserError that names the file and the free space where ``error`` says that the disk is full."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return
    free = "unknown"
    with suppress(OSError):
        free = f"{shutil.disk_usage(Path(path).parent).free / 1e6:.1f} MB"
    raise UserError(
        f"{path}: could not be written ({error.strerror or error}; free space there: {free}); "
        "what was written before is intact: free some space or choose another place, and run it again"
    ) from error


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; a file system that can't sync folders is let be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _finite(obj: Any) -> Any:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    return obj


def _check_replaceable(path: Path, marker: str | None) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: is a file, expected a folder (or nothing yet); choose another place")
    if marker is not None and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path}: holds files but no {marker}, so it was not written by dspark and is not replaced; "
            "choose another place or empty it"
        )


def _swap_folder(new: Path, path: Path) -> None:
    try:
        os.rename(new, path)  # takes the place of nothing or of an empty folder
        return
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
