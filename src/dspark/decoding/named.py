"""Modes as users name them: off, fixed1 ... fixedK, ngram, adaptive, delayed, mtp1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dspark.decoding.chosen import Chosen
from dspark.decoding.engine import Engine, Limits, Observe
from dspark.decoding.modes import Mode
from dspark.decoding.planners import Adaptive, Apart, StepPlanner, Together
from dspark.decoding.request import Request
from dspark.drafters.config import MTPConfig
from dspark.drafters.drafter import Drafter
from dspark.foundation.errors import UserError
from dspark.speculation.planner.single import Planning
from dspark.targets.model import Target

OFF, NGRAM, ADAPTIVE, DELAYED, MTP1 = "off", "ngram", "adaptive", "delayed", "mtp1"
_FIXED = re.compile(r"fixed([1-9]\d*)")


@dataclass(frozen=True)
class Speculation:
    """A mode by its name: what drafts, and how much of it is verified.

    ``off`` drafts nothing, ``fixedK`` drafts and verifies K tokens in every round, ``ngram`` copies what followed the
    same words before, ``adaptive`` leaves it to the scheduler, ``delayed`` as well, which then knows what was over two
    steps ago (``Adaptive.delayed``), ``mtp1`` is ``fixed1`` with an MTP-1 drafter, the usual baseline. ``fixed``: that
    K.
    """

    name: str
    fixed: int | None = None

    @classmethod
    def named(cls, name: str, block: int | None, kind: str | None = None) -> Speculation:
        """UserError for a name that is none, more drafts than the drafter's ``block`` has (None: no drafter), or a mode
        for drafters of another ``kind`` (None: not known yet).
        """
        found = _FIXED.fullmatch(name)
        if found is None and name not in (OFF, NGRAM, ADAPTIVE, DELAYED, MTP1):
            raise UserError(
                f"no mode {name!r}; expected off, ngram, adaptive, delayed, or fixedK with K drafts, like fixed4, or"
                " mtp1 with a drafter of that kind"
            )
        if block is None and name not in (OFF, NGRAM):
            raise UserError(
                f"mode {name} drafts, and there is no drafter; give one with --drafter, or take off or ngram"
            )
        if kind is not None:
            _check_kind(name, kind)
        fixed = int(found[1]) if found else 1 if name == MTP1 else None
        if fixed is not None and block is not None and fixed > block:
            raise UserError(f"mode {name} asks for {fixed} drafts, the drafter's blocks have {block}")
        return cls(name, fixed)

    @property
    def scheduled(self) -> bool:
        """Whether a scheduler plans its steps, by what these cost."""
        return self.name in (ADAPTIVE, DELAYED)

    def planner(self, adaptive: Adaptive | None, slots: int, block: int) -> StepPlanner | None:
        """What plans its steps for up to ``slots`` requests and may outlive an engine; None where nothing has to."""
        if not self.scheduled:
            return None
        if adaptive is None:
            raise UserError(f"mode {self.name} plans by what steps cost, and nobody has measured that")
        return Together(adaptive.delayed if self.name == DELAYED else adaptive, slots, block)

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
        if drafter is not None:
            _check_kind(self.name, drafter.config.kind)
        mode: Mode = "plain" if self.name == OFF else "ngram" if self.name == NGRAM else "dspark"
        return Engine(
            target,
            requests,
            limits,
            mode,
            drafter if mode == "dspark" else None,
            lookup=self.scheduled,
            greedy=self._whole,
            sampled=self._whole,
            planner=planner,
            observe=observe,
        )

    @property
    def _whole(self) -> Planning:
        """Everything drafted is verified."""
        return Planning(draft_slots=self.fixed)


def _check_kind(mode: str, kind: str) -> None:
    if mode == MTP1 and kind != MTPConfig.kind:
        raise UserError(
            f"mode mtp1 drafts with an MTP-1 checkpoint, and the drafter is of kind {kind}; give one with --drafter"
            " (a recipe with drafter.kind: mtp trains one)"
        )
