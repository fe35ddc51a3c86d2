"""What several kinds of record say in the same words: the way of sampling, and whether texts are plain decoding's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspark.report.records.record import count, number


def regime_of(sampling: Mapping[str, Any]) -> str:
    """Greedy, or the temperature with top-k and top-p where they cut."""
    temperature, top_k, top_p = (number(sampling[name]) for name in ("temperature", "top_k", "top_p"))
    if temperature == 0:
        return "greedy"
    more = f", top-k {top_k:.0f}" * (top_k > 0) + f", top-p {top_p:g}" * (top_p < 1)
    return f"temperature {temperature:g}{more}"


@dataclass(frozen=True)
class Same:
    """Texts equal to plain decoding's, of how many, and those with a difference that rounding does not explain."""

    equal: int
    total: int
    unexplained: int

    @classmethod
    def of(cls, row: Mapping[str, Any] | None) -> Same | None:
        """None where nobody asked: drawn texts differ anyway."""
        return cls(*(count(row[name]) for name in ("equal", "total", "unexplained"))) if row else None

    @property
    def said(self) -> str:
        """In words."""
        return f"{self.equal}/{self.total}" + (f", {self.unexplained} UNEXPLAINED" if self.unexplained else "")
