"""Rows of JSON, one a line, that survive a kill at any moment.

A row counts once its newline is on the disk. The beginning of a row that a killed writer left after the last newline
is cut off (or, where it is a whole row, completed) by the next writer that opens the file; what else may stand there
is not ours.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dspark.foundation.artifacts import json_text, raise_if_full
from dspark.foundation.errors import UserError

_CHUNK = 1 << 16


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) for every non-blank line.

    Raises UserError that names the file (and the line) where the file is missing, unreadable or without any
    row, and where a line is not UTF-8, not JSON or not an object.
    """
    path = Path(path)
    rows = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows += 1
                    yield number, _parse(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); expected a JSONL file") from error
    if not rows:
        raise UserError(f"{path}: has no rows; expected one JSON object a line")


class JsonlWriter:
    """Appends rows to a JSONL file; every ``append`` is on the disk when it returns.

    One writer a file: a second one, in this process or another, is refused with a UserError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise UserError(f"{self.path}: can't be opened for writing ({error.strerror or error})") from error
        try:
            self._lock()
            self._size = self._repair()
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows, or none: one write and one fsync.

        Raises UserError when the disk is full; the rows written before are intact, those of this call are not
        there.
        """
        data = "".join(json_text(dict(row)) + "\n" for row in rows).encode("utf-8")
        if not data:
            return
        try:
            write_all(self._file.fileno(), data)
            os.fsync(self._file.fileno())
        except BaseException as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise_if_full(error, self.path)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise UserError(
                    f"{self.path}: another writer has it open; wait for it or choose another file"
                ) from error
            # A file system without locks: the promise of a single writer is the caller's then.

    def _repair(self) -> int:
        """Cut or complete what follows the last newline; returns the size in bytes after that."""
        size = os.fstat(self._file.fileno()).st_size
        keep = _end_of_last_line(self._file.fileno(), size)
        if keep == size:
            return size
        tail = os.pread(self._file.fileno(), size - keep, keep)
        try:
            whole = isinstance(json.loads(tail), dict)  # no proper prefix of a JSON object is one
        except ValueError:
            whole = False
        if whole:
            write_all(self._file.fileno(), b"\n")
            return size + 1
        if not tail.startswith(b"{"):
            raise UserError(
                f"{self.path}: does not end like a file of JSON rows, so nothing is cut off it or added to it;"
                " choose another file, or end its last line"
            )
        self._file.truncate(keep)
        return keep


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``: one system call, more only where the kernel takes less (a nearly full disk)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _end_of_last_line(descriptor: int, size: int) -> int:
    """Offset just behind the last newline, 0 where there is none."""
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise UserError(
            f"{where}: not valid JSON ({reason}); expected one object {{...}} a line: mend or remove that line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a JSON {type(row).__name__}, expected an object {{...}}")
    return row
