"""Rows of data sets on the hub, through the library of the hub's makers; the one file that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dspark.foundation.errors import UserError, first_line


@dataclass(frozen=True)
class Source:
    """What ``datasets.load_dataset`` is given: a data set with its configuration, or a format and ``files`` of it."""

    path: str
    name: str | None = None
    split: str = "train"
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.files[0].rpartition("/")[0] if self.files else self.path


def hub_rows(source: Source, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows in their order, with those of ``columns`` that the data set has; read as they come, kept nowhere.

    UserError where the library is missing, or the hub can't be reached or has no such rows.
    """
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError as error:
        raise UserError(
            "benchmarks come from the hub through the library `datasets`, which is not installed: pip install"
            " 'dspark[benchmarks]', or name a folder of JSONL files with --benchmark-folder"
        ) from error
    disable_progress_bar()
    try:
        rows = load_dataset(
            source.path,
            source.name,
            split=source.split,
            data_files={source.split: list(source.files)} if source.files else None,
            streaming=True,
        )
        for row in rows:
            yield {name: row[name] for name in columns if name in row}
    except Exception as error:  # the library and the client below it raise many kinds: offline, gated, missing, changed
        raise UserError(
            f"{source} can't be read from the hub ({first_line(error)}); check the network, or name a folder of JSONL"
            " files with --benchmark-folder"
        ) from error
