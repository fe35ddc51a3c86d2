"""Many requests at once: prompts in pieces, speculative rounds of any lengths, finished rows replaced at once.

Every answer is the one that the reference loop would have given to that request alone: draws belong to the request,
and neighbours share nothing but the passes over the weights. A step is

    shares -> drafts -> lengths -> the target's pass -> verdicts -> committed -> finished

Legend: T tokens of a step, N rows whose logits are needed, R requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dspark.decoding.admission import Admission, Share
from dspark.decoding.caches import Caches
from dspark.decoding.kvcache import BlockPool
from dspark.decoding.laps import Laps
from dspark.decoding.logprobs import logprobs_of
from dspark.decoding.modes import LOOKUP_BLOCK, Mode, lookup_of
from dspark.decoding.planners import Apart, StepPlanner
from dspark.decoding.proposer import NO_DRAFT, propose
from dspark.decoding.request import Completion, GivenUp, Reason, Request, Running
from dspark.decoding.sampler import settle, settle_finite
from dspark.decoding.work import Work, asked
from dspark.drafters.drafter import Drafter, Room
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.cost import Load
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import cut
from dspark.speculation.planner.single import WHOLE, Planning
from dspark.speculation.rejection import Verdict
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch

# Positions of a block of the cache: fewer cost more calls of the kernel, more waste room and share less.
BLOCK = 128
# Tokens of a step: enough rows to keep the matrix products efficient, few enough to bound its memory.
STEP_TOKENS = 1024
NO_DRAFTER = "speculative decoding was asked for without a drafter; give one with --drafter"


@dataclass(frozen=True)
class Limits:
    """``slots`` requests under way at once; ``cache_tokens`` positions in the cache, which bound its memory.

    UserError for anything below 1.
    """

    slots: int
    cache_tokens: int
    step_tokens: int = STEP_TOKENS
    block: int = BLOCK

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if value < 1}
        if wrong:
            raise UserError(f"{', '.join(f'{name} is {value}' for name, value in wrong.items())}; expected at least 1")


# (what a request did in a step, what became of its drafts, its rows ``[length + 1, V]`` of logits), behind a verdict.
Observe = Callable[[Work, Verdict, Tensor], None]


class Engine:
    """A target, its drafter and the requests under way.

    ``mode``, ``lookup`` and how ``greedy`` and ``sampled`` rounds are planned are ``Decoder``'s; a ``planner`` plans
    those of mode "dspark" instead, and may outlive the engine. ``observe`` is told of every verdict. ``caches``: what
    another engine has left, in place of new ones. An answer ends where the context does. Raises UserError for mode
    "dspark" without a drafter, and, by id, for a request that the cache or the context can't hold.
    """

    def __init__(
        self,
        target: Target,
        requests: Iterable[Request],
        limits: Limits,
        mode: Mode = "plain",
        drafter: Drafter | None = None,
        *,
        lookup: bool = True,
        greedy: Planning = WHOLE,
        sampled: Planning = WHOLE,
        planner: StepPlanner | None = None,
        observe: Observe | None = None,
        caches: Caches | None = None,
    ) -> None:
        if mode == "dspark" and drafter is None:
            raise UserError(NO_DRAFTER)
        if caches is None:
            count = -(-limits.cache_tokens // limits.block)
            caches = Caches(target, drafter if mode == "dspark" else None, count, limits.block)
        self.target = target
        self.pool, self.cache = BlockPool(caches.count, caches.size), caches.target
        self.laps = Laps()
        self.load = Load(0, 0)
        """What the last step worked on."""
        self.lose: Callable[[GivenUp], None] | None = None
        """Who is told of a request that is given up because its logits are no numbers; without one, that is an
        ArithmeticError of the step."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Called when a step is about to draft or to pass over the target, which leaves the interpreter to others."""
        self.broken_drafts = 0
        """How many drafts ended before a slot whose logits or confidence were no numbers."""
        self._mode, self._lookup = mode, lookup
        self._observe = observe
        self.planner: StepPlanner = planner or Apart(greedy, sampled, drafter=mode == "dspark")
        self._drafter: Room | None = None
        self._taps: tuple[int, ...] = ()
        drafted = 0 if mode == "plain" else LOOKUP_BLOCK
        if mode == "dspark" and drafter is not None:
            assert caches.room is not None, "caches of another engine, which had no drafter"
            self._drafter = caches.room
            self.pool.emptied = self._drafter.drop
            self._taps = drafter.config.target_layer_ids
            for slots in self.planner.draft_slots:
                if slots is not None and not 1 <= slots <= drafter.config.block_size:
                    raise UserError(f"draft_slots is {slots}; expected 1 to {drafter.config.block_size}, or none")
            drafted = max(drafter.config.block_size, LOOKUP_BLOCK if lookup else 0)
        self._round_tokens = 1 + drafted
        self.admission = Admission(
            self.pool,
            requests,
            self._start,
            slots=limits.slots,
            step_tokens=limits.step_tokens,
            round_tokens=self._round_tokens,
        )

    def run(self) -> Iterator[Completion]:
        """Answer everything; completions come in the order they finish."""
        while shares := self.admission.shares():
            yield from self.step(shares)
        self.check_integrity()

    @property
    def room(self) -> int:
        """Positions of the cache that one request may need, prompt and answer."""
        return self.pool.count * self.pool.size - self._round_tokens + 1

    def limit(self, request: Request) -> int:
        """Output tokens at most; UserError for a request that can't be answered. Asked from any thread."""
        if not request.prompt_ids or request.max_tokens < 1:
            raise UserError(
                f"request {request.id} has {len(request.prompt_ids)} prompt tokens and asks for {request.max_tokens};"
                " expected at least one of each"
            )
        context, room = self.target.max_positions, self.room
        limit = min(request.max_tokens, context - len(request.prompt_ids))
        if limit < 1:
            raise UserError(
                f"the prompt of request {request.id} has {len(request.prompt_ids)} tokens, the context of"
                f" {self.target.name} holds {context}; shorten the prompt"
            )
        if len(request.prompt_ids) + limit > room:
            raise UserError(
                f"request {request.id} needs {len(request.prompt_ids) + limit} positions (prompt"
                f" {len(request.prompt_ids)} and answer {limit}), the cache has {room}; shorten it"
            )
        if request.wishes is not None:
            request.wishes.check(self.target.vocab_size)
        return limit

    def submit(self, request: Request) -> None:
        """One more request; UserError for one that can't be answered, or whose id is under way."""
        self.limit(request)
        self.admission.submit(request)

    def cancel(self, request_id: str, reason: Reason = "cancelled") -> GivenUp | None:
        """Give up a request between two steps, wherever it is, and what it held; None where it is nowhere."""
        found = self.admission.withdraw(request_id)
        if isinstance(found, Running):
            return GivenUp(found.request, found.output_ids, reason)
        return None if found is None else GivenUp(found, [], reason)

    def expire(self, now: float) -> list[GivenUp]:
        """Give up those whose deadline has passed."""
        under_way = [*(row.request for row in self.admission.running), *self.admission.queue.requests()]
        late = [each.id for each in under_way if each.deadline is not None and each.deadline <= now]
        return [gone for each in late if (gone := self.cancel(each, "deadline")) is not None]

    def check_integrity(self) -> None:
        """AssertionError unless requests under way explain every block of the cache that is held."""
        self.pool.check_integrity(row.table for row in self.admission.running)

    @torch.inference_mode()
    def step(self, shares: Sequence[Share]) -> list[Completion]:
        """One pass over the target for everybody who has a part in it; nothing where nobody has."""
        if not shares:
            return []
        started = time.perf_counter()
        self.laps.start()
        works = self._works(shares)
        self.load = self._load(works)
        batch = RaggedBatch(self.cache, [work.row.table for work in works], [len(work.ids) for work in works])
        ids = torch.tensor([token for work in works for token in work.ids], device=self.target.device)
        self.laps("bookkeeping")
        self.meanwhile()
        forward = self.target.forward(ids, batch, self._taps)
        self.laps("verify")
        self.planner.ahead()  # a GPU is at work until something is read from it
        self.laps("plan")
        answering = [work for work in works if work.answers]
        rows = [work.row for work in answering]
        verdicts: Iterator[Verdict | None] = iter(())
        if answering:
            every = all(not work.count for work in works)
            hidden_ND = forward.hidden_TD if every else forward.hidden_TD[asked(works, ids.device)]
            raw_NV = self.target.head(hidden_ND)
            self.laps("verify")
            logits_NV = self._granted(raw_NV, answering)
            settled = settle if self.lose is None else settle_finite
            found = [*settled(logits_NV, rows, [w.draft for w in answering], [w.length for w in answering])]
            self._tell(answering, found, logits_NV)
            verdicts = iter(found)
        self.laps("sample")
        kept = [self._commit(work, next(verdicts)) if work.answers else work.count for work in works]
        if answering:
            _note_logprobs(answering, raw_NV)
        self._take_features(works, forward.features_TF, batch, kept)
        self.laps("features")
        self._publish(works)
        rounds = [work.row.rounds[-1] for work in works if not work.count]
        self.laps("bookkeeping")
        late = 0.0 if self._drafter is None else self._drafter.late()  # no part of what such a step takes
        self.planner.over(rounds, self.load, time.perf_counter() - started - late)
        self.laps("plan")
        done = [self._finish(row) for row in rows if row.rounds[-1].finish is not None]
        self.laps("bookkeeping")
        return done

    def _start(self, request: Request) -> Running:
        limit = self.limit(request)
        lookup = lookup_of(self._mode, self._lookup, request.sampling)
        coupling = request.coupling(self.target.vocab_size)
        return Running(request, SeededDraws(request.seed), limit, lookup, coupling)

    def _works(self, shares: Sequence[Share]) -> list[Work]:
        """Everybody's part, rounds with their drafts and how many of these are verified."""
        going_on = [share.row for share in shares if not share.count]
        self.planner.begin(going_on)
        self.laps("plan")
        proposed = propose(going_on, self._drafter, self._wanted, self.laps, self.planner.slots, self.meanwhile)
        self.broken_drafts += sum(draft.broken > 0 for draft in proposed)
        lengths = self.planner.lengths(going_on, proposed)
        self.laps("plan")
        drafts = iter(zip(proposed, lengths, strict=True))
        works = []
        for share in shares:
            draft, length = (NO_DRAFT, 0) if share.count else next(drafts)
            length = max(0, min(length, len(draft.tokens), share.row.room - 1))
            works.append(Work(share.row, share.count, draft, length))
        return works

    def _load(self, works: Sequence[Work]) -> Load:
        """What a step is charged for (``speculation.cost``)."""
        drafted = [(work.draft.slots, work.start) for work in works if work.draft.source == "drafter"]
        sampled = [work for work in works if not work.row.request.sampling.greedy]
        return Load(
            tokens=sum(len(work.ids) for work in works),
            requests=len(works),
            context=sum(work.start for work in works),
            reads=sum(len(work.ids) * work.start for work in works),
            drafting=sum(count for count, _ in drafted),
            reads_drafting=sum(count * start for count, start in drafted),
            laws=sum(work.length + 1 for work in sampled if work.answers),
            laws_drafting=sum(work.draft.slots for work in sampled if work.draft.source == "drafter"),
        )

    def _wanted(self, row: Running, source: Source) -> bool:
        """Whether ``source`` may propose in the request's next round."""
        return row.room > 1 and self.planner.wanted(row, source)

    def _tell(self, works: Sequence[Work], verdicts: Sequence[Verdict | None], logits_NV: Tensor) -> None:
        """Tell an observer, before anything is committed."""
        if self._observe is not None:
            rows = logits_NV.split([work.length + 1 for work in works])
            for work, verdict, mine_nV in zip(works, verdicts, rows, strict=True):
                if verdict is not None:
                    self._observe(work, verdict, mine_nV)

    def _granted(self, logits_NV: Tensor, works: Sequence[Work]) -> Tensor:
        """The logits as each request wishes them; the same tensor where nobody wishes anything."""
        if all(work.row.request.wishes is None for work in works):
            return logits_NV
        rows = logits_NV.split([work.length + 1 for work in works])
        return torch.cat([self._wished(*each) for each in zip(works, rows, strict=True)])

    def _wished(self, work: Work, mine_nV: Tensor) -> Tensor:
        request, output = work.row.request, work.row.output_ids
        if request.wishes is None:
            return mine_nV
        drafts = work.draft.tokens[: work.length]
        return request.wishes.granted(mine_nV, request.prompt_ids, output, drafts, self._stops(request))

    def _stops(self, request: Request) -> frozenset[int]:
        return frozenset() if request.ignore_stop else self.target.stop_ids.union(request.stop_ids)

    def _commit(self, work: Work, verdict: Verdict | None) -> int:
        """Take over what was decided and roll back what was not; how many of the tokens that were run stay."""
        row, draft = work.row, work.draft
        if verdict is None:
            return self._lose(work)
        new = [*draft.tokens[: verdict.accepted], verdict.next_token]
        tokens, finish = cut(new, row.room, self._stops(row.request))
        if row.request.stops and (end := row.stops_behind(tokens, self.target.chat.decode)) is not None:
            tokens, finish = tokens[:end], "stop"
        accepted = min(verdict.accepted, len(tokens))
        row.rounds.append(
            Round(len(row.rounds), tuple(tokens), draft.slots, work.length, accepted, finish, draft.source)
        )
        row.ids += tokens
        stay = (work.count or 1) + verdict.accepted
        self.pool.truncate(row.table, work.start + stay)
        return stay

    def _lose(self, work: Work) -> int:
        """Give up a request that came to no numbers, and leave none of them behind; nothing of it stays."""
        row = work.row
        row.rounds.append(Round(len(row.rounds), (), work.draft.slots, work.length, 0, None, work.draft.source))
        blocks = self.pool.withdraw(row.table)
        for cache in (self.cache, *([self._drafter.cache] if self._drafter else [])):
            cache.clear(blocks)
        gone = self.cancel(row.request.id, "broken")
        assert gone is not None and self.lose is not None
        self.lose(gone)
        return 0

    def _take_features(
        self, works: Sequence[Work], features_TF: Tensor | None, batch: RaggedBatch, kept: Sequence[int]
    ) -> None:
        """Context rows of the committed tokens for the drafter."""
        if self._drafter is None or features_TF is None or not any(kept):
            return
        rows = features_TF, batch.positions_T, batch.rows_T
        if sum(kept) < len(features_TF):
            firsts = accumulate(batch.counts, initial=0)
            stay = [first + i for first, n in zip(firsts, kept, strict=False) for i in range(n)]
            if stay == [*range(len(stay))]:  # of one request
                rows = rows[0][: len(stay)], rows[1][: len(stay)], rows[2][: len(stay)]
            else:
                stay_T = torch.tensor(stay, device=features_TF.device)
                rows = rows[0][stay_T], rows[1][stay_T], rows[2][stay_T]
        if self._drafter.reads_next:
            behind = [token for work, n in zip(works, kept, strict=True) for token in work.behind(n)]
            self._drafter.extend(*rows, torch.tensor(behind, device=features_TF.device))
        else:
            self._drafter.extend(*rows)

    def _publish(self, works: Sequence[Work]) -> None:
        """Make blocks findable that have become full, unless one of their rows depends on what is behind them."""
        if self._drafter is not None and self._drafter.reads_next:
            return
        size = self.pool.size
        for work in works:
            table = work.row.table
            if table.length // size > work.start // size:
                self.pool.publish(table, work.row.ids[: table.length])

    def _finish(self, row: Running) -> Completion:
        self.admission.finish(row)
        finish = row.rounds[-1].finish
        assert finish is not None
        return Completion(row.request, row.output_ids, finish, tuple(row.rounds), tuple(row.logprobs))


def _note_logprobs(works: Sequence[Work], raw_NV: Tensor) -> None:
    """Of what each request has just written, where it asked for that."""
    if all(work.row.request.logprobs is None for work in works):
        return
    for work, mine_nV in zip(works, raw_NV.split([work.length + 1 for work in works]), strict=True):
        row = work.row
        if row.request.logprobs is not None and row.rounds[-1].tokens:
            row.logprobs += logprobs_of(mine_nV, row.rounds[-1].tokens, row.request.logprobs)
