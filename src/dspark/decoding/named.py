"""Modes as users name them: off, fixed1 ... fixedK, ngram, adaptive."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dspark.decoding.chosen import Chosen
from dspark.decoding.engine import Engine, Limits, Observe
from dspark.decoding.modes import Mode
from dspark.decoding.planners import Adaptive, Apart, StepPlanner, Together
from dspark.decoding.request import Request
from dspark.drafters.drafter import Drafter
from dspark.foundation.errors import UserError
from dspark.speculation.planner.single import Planning
from dspark.targets.model import Target

OFF, NGRAM, ADAPTIVE = "off", "ngram", "adaptive"
_FIXED = re.compile(r"fixed([1-9]\d*)")


@dataclass(frozen=True)
class Speculation:
    """A mode by its name: what drafts, and how much of it is verified.

    ``off`` drafts nothing, ``fixedK`` drafts and verifies K tokens in every round, ``ngram`` copies what followed the
    same words before, ``adaptive`` leaves it to the scheduler. ``fixed``: that K.
    """

    name: str
    fixed: int | None = None

    @classmethod
    def named(cls, name: str, block: int | None) -> Speculation:
        """UserError for a name that is none, or more drafts than the drafter's ``block`` has (None: no drafter)."""
        found = _FIXED.fullmatch(name)
        if found is None and name not in (OFF, NGRAM, ADAPTIVE):
            raise UserError(f"no mode {name!r}; expected off, ngram, adaptive, or fixedK with K drafts, like fixed4")
        if block is None and name not in (OFF, NGRAM):
            raise UserError(
                f"mode {name} drafts, and there is no drafter; give one with --drafter, or take off or ngram"
            )
        fixed = int(found[1]) if found else None
        if fixed is not None and block is not None and fixed > block:
            raise UserError(f"mode {name} asks for {fixed} drafts, the drafter's blocks have {block}")
        return cls(name, fixed)

    def planner(self, adaptive: Adaptive | None, slots: int, block: int) -> StepPlanner | None:
        """What plans its steps for up to ``slots`` requests and may outlive an engine; None where nothing has to."""
        if self.name != ADAPTIVE:
            return None
        if adaptive is None:
            raise UserError("mode adaptive plans by what steps cost, and nobody has measured that")
        return Together(adaptive, slots, block)

    def choosing(self, adaptive: Adaptive | None, slots: int, block: int) -> StepPlanner:
        """The same for requests that may choose otherwise (``Request.drafts``)."""
        planner = self.planner(adaptive, slots, block)
        return Chosen(planner or Apart(self._whole, self._whole, drafter=self.fixed is not None), block)

    def engine(
        self,
        target: Target,
        drafter: Drafter | None,
        requests: Iterable[Request],
        limits: Limits,
        planner: StepPlanner | None = None,
        observe: Observe | None = None,
    ) -> Engine:
        """That decodes so; ``planner`` as this gave it."""
        mode: Mode = "plain" if self.name == OFF else "ngram" if self.name == NGRAM else "dspark"
        return Engine(
            target,
            requests,
            limits,
            mode,
            drafter if mode == "dspark" else None,
            lookup=self.name == ADAPTIVE,
            greedy=self._whole,
            sampled=self._whole,
            planner=planner,
            observe=observe,
        )

    @property
    def _whole(self) -> Planning:
        """Everything drafted is verified."""
        return Planning(draft_slots=self.fixed)
