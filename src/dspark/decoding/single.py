"""One request at a time, plain, with a trained drafter, or with prompt lookup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from dspark.decoding.caches import Caches
from dspark.decoding.engine import BLOCK, NO_DRAFTER, Engine, Limits, Observe
from dspark.decoding.modes import Mode, lookup_of
from dspark.decoding.request import Completion, Request
from dspark.drafters.drafter import Drafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import DrafterState, generate
from dspark.speculation.planner.single import WHOLE, Planning
from dspark.targets.model import Target
from dspark.targets.session import TargetSession

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Decoder:
    """A target with the drafter that was loaded for it (None: only plain decoding and prompt lookup).

    How a sampled request's rounds are planned decides which draws are used, so ``sampled`` must not rest on a clock: a
    seed must give the same text on a machine of another speed. ``lookup`` spares the drafter where the last words have
    occurred before; without it every draft is the drafter's own. ``observe`` is told of every verdict.
    """

    target: Target
    drafter: Drafter | None = None
    greedy: Planning = WHOLE
    sampled: Planning = WHOLE
    lookup: bool = True
    observe: Observe | None = None
    _spare: list[Caches] = field(default_factory=list, init=False, repr=False, compare=False)

    def stream(self, request: Request, mode: Mode) -> Iterator[Round]:
        """The request's rounds as they come, through the batched core.

        Raises UserError for a prompt that leaves no room in the target's context, or mode "dspark" without a drafter.
        """
        engine, caches = self._engine(request, mode)
        return self._afterwards(_rounds(engine), caches)

    def answer(self, request: Request, mode: Mode) -> Completion:
        """The same, when it is done."""
        engine, caches = self._engine(request, mode)
        (completion,) = self._afterwards(engine.run(), caches)
        return completion

    def reference(self, request: Request, mode: Mode) -> Iterator[Round]:
        """The same rounds through the reference loop: slower, and what the core is held against."""
        taps: tuple[int, ...] = ()
        planning = WHOLE
        state: DrafterState | None = None
        if mode == "dspark":
            if self.drafter is None:
                raise UserError(NO_DRAFTER)
            taps = self.drafter.config.target_layer_ids
            planning = (self.greedy if request.sampling.greedy else self.sampled).of(request.sampling)
            state = DSparkState(self.drafter, planning.draft_slots)
        limit = self.target.max_positions
        # Exactly enough: no round verifies more than the room that is left.
        session = TargetSession(self.target, min(limit, len(request.prompt_ids) + request.max_tokens), taps)
        return generate(
            session,
            state,
            request.prompt_ids,
            sampling=request.sampling,
            draws=SeededDraws(request.seed),
            max_tokens=request.max_tokens,
            lookup=lookup_of(mode, self.lookup, request.sampling),
            stop_ids=() if request.ignore_stop else self.target.stop_ids,
            verify_length=planning.verify_length,
            when=planning.when,
            calibration=planning.calibrations.of(request.sampling),
            context_limit=limit,
            coupling=request.coupling(self.target.vocab_size),
        )

    def _engine(self, request: Request, mode: Mode) -> tuple[Engine, Caches]:
        positions = min(len(request.prompt_ids) + request.max_tokens, self.target.max_positions)
        limits = Limits(slots=1, cache_tokens=positions + BLOCK)  # drafts may reach beyond the answer's end
        caches = self._caches(-(-limits.cache_tokens // BLOCK))
        engine = Engine(
            self.target,
            [request],
            limits,
            mode,
            self.drafter,
            lookup=self.lookup,
            greedy=self.greedy,
            sampled=self.sampled,
            observe=self.observe,
            caches=caches,
        )
        return engine, caches

    def _caches(self, blocks: int) -> Caches:
        """Those of an answer that is done, or new ones: of more blocks than are asked for, since programs are made for
        the caches that they read, and the next answers will be about as long.
        """
        while self._spare:
            caches = self._spare.pop()
            if caches.count >= blocks:
                return caches.emptied()
        return Caches(self.target, self.drafter, 1 << (blocks - 1).bit_length(), BLOCK)

    def _afterwards(self, found: Iterator[_Found], caches: Caches) -> Iterator[_Found]:
        """What comes, and its caches to whoever asks next."""
        yield from found
        self._spare[:] = [caches]


def _rounds(engine: Engine) -> Iterator[Round]:
    seen = 0
    while shares := engine.admission.shares():
        (row,) = (share.row for share in shares)
        engine.step(shares)
        yield from row.rounds[seen:]
        seen = len(row.rounds)
