"""Who answers: the batched core in this process, or (in ``endpoints``) servers over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Completion, Request
from dspark.targets.model import Target


@dataclass(frozen=True)
class Failure:
    """A request that was given up, and why."""

    request: Request
    reason: str


class Answerer(Protocol):
    """Answers requests in any order; a caller may hand in further ones while it reads."""

    mismatched: int
    """Answers whose ids had to be made from text and do not fit what the server counted."""

    def run(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """Answer ``requests``, and those submitted meanwhile before the rest of them."""
        ...

    def submit(self, request: Request) -> None:
        """A further request; only while ``run`` is being read."""
        ...


class EmbeddedAnswerer:
    """The target itself, within ``limits``."""

    mismatched = 0

    def __init__(self, target: Target, limits: Limits) -> None:
        self._target, self._limits = target, limits
        self._engine: Engine | None = None

    def run(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """See ``Answerer``."""
        self._engine = Engine(self._target, requests, self._limits)
        yield from self._engine.run()

    def submit(self, request: Request) -> None:
        """See ``Answerer``."""
        assert self._engine is not None, "nothing is running"
        self._engine.admission.submit(request)
