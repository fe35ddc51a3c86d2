"""What every kind of record has: how it is told, what brings it, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dspark.report.figures import Section
from dspark.report.records.record import Record

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Records with all of the ``keys`` (or all of another set of them) in their first row are of this kind.

    ``read`` takes a record apart; what it raises for one that is broken (KeyError, TypeError, ValueError) ends as a
    UserError that names the file. ``section``: what is shown of all of them.
    """

    name: str
    keys: tuple[frozenset[str], ...]
    brings: str
    """What a page without it lacks."""
    command: str
    """Writes one."""
    read: Callable[[Record], T]
    section: Callable[[Sequence[T]], Section]
    facts: Callable[[Record], Mapping[str, str]]
    """Settings and circumstances, for the list of records."""

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Whether a record that begins with this row is of this kind."""
        return any(keys <= row.keys() for keys in self.keys)
