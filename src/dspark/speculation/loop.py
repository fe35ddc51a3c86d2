"""The reference draft-verify loop for one request: the oracle that every faster engine is held against.

A round: the drafter proposes x_1..x_K after the anchor x_0, a hook keeps a prefix of l, the target runs
x_0..x_l in one pass, rejection sampling accepts n of them and adds one token, both caches roll back to the
committed tokens.

Shapes: `_KV` drafted tokens times the draft's support, `_NV` rows of target logits, `_TF` positions times L*d
tapped features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Protocol

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Finish, Round, Source
from dspark.speculation.confidence import ConfidenceMap, chances
from dspark.speculation.coupling import Coupling
from dspark.speculation.draws import CertainDraws, Draws, Purpose
from dspark.speculation.recalibration import LEVEL, Tilt
from dspark.speculation.rejection import Verdict, verify
from dspark.speculation.sampling import Sampling, distribution

__all__ = [
    "Draft",
    "DrafterState",
    "OneRequest",
    "Round",
    "Sample",
    "Step",
    "TargetState",
    "VerifyLength",
    "WhenToDraft",
    "always",
    "cut",
    "generate",
    "verify_all",
]

# (slot, logits over the draft's support, that support as in Draft) -> (index into the support, the probabilities it was
# drawn from).
Sample = Callable[[int, Tensor, Tensor | None], tuple[int, Tensor]]

# (number of drafts, at least 1; their survival a[K], None where nothing is known of it) -> how many to verify.
#
# To stay lossless the decision about x_k may depend on the past and on what was known before x_k was drawn,
# so a hook that reads the present survival must walk it from the left and stop early (Algorithm 1). A search
# over the whole array lets a_k, which knows x_1..x_{k-1}, decide whether x_1 is verified: App. A's bias.
VerifyLength = Callable[[int, Sequence[float] | None], int]

# (the request's rounds so far, who would propose) -> whether that one may in the next round. It sees the past alone, so
# it is lossless.
WhenToDraft = Callable[[Sequence[Round], Source], bool]


@dataclass(frozen=True)
class Step:
    """One target pass: logits of the last rows, and the tapped features of all rows where the target taps."""

    logits_NV: Tensor
    features_TF: Tensor | None


class TargetState(Protocol):
    """One request on the frozen model."""

    @property
    def length(self) -> int:
        """Positions in the cache."""
        ...

    def extend(self, ids: list[int], logits: int) -> Step:
        """Run ids at positions length.. and return the logits of the last `logits` rows."""
        ...

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        ...


@dataclass(frozen=True)
class Draft:
    """K drafted tokens and what they were drawn from.

    probs[K, V_d] are the tensors that were sampled from, over `support` (int64[V_d] target ids, ascending) or
    over the whole vocabulary where that is None; probs None says that every token was certain (temperature 0, a
    copy). confidence[K] are logits of c_k (Eq. 7), and peaks[K] log-odds of the largest p_d(.) of each slot at
    temperature 1; neither ever sees x_k. `source` says what proposed them. `broken`: how many slots more were drafted,
    the first of which has logits or a confidence that are no numbers. `drawn[K]`: probabilities in probs of the tokens
    themselves, where they are known already.
    """

    tokens: list[int]
    probs: Tensor | None = None
    support: Tensor | None = None
    confidence: Sequence[float] | None = None
    peaks: Sequence[float] | None = None
    source: Source = "drafter"
    broken: int = 0
    drawn: Sequence[float] | None = None

    @property
    def slots(self) -> int:
        """How many were drafted. Unlike the number of tokens it is known before any of them is drawn."""
        return len(self.tokens) + self.broken

    def sound(self, count: int) -> Draft:
        """The first ``count`` tokens, where the slot behind them is broken (or there is none).

        All of a draft may not be dropped for a broken slot: that is known once the tokens before it are drawn, and
        would choose between them (App. A). Where it ends depends on those alone that stay.
        """
        if count == len(self.tokens):
            return self
        part = Draft(self.tokens[:count], support=self.support, source=self.source, broken=self.slots - count)
        if not count:
            return part
        said = [None if each is None else each[:count] for each in (self.confidence, self.peaks, self.drawn)]
        probs = None if self.probs is None else self.probs[:count]
        return replace(part, probs=probs, confidence=said[0], peaks=said[1], drawn=said[2])

    def dense(self, vocab_size: int) -> Tensor:
        """p_d[K, V] over the target's vocabulary: zero outside the support."""
        if self.probs is None:
            certain_KV = torch.zeros(len(self.tokens), vocab_size)
            return certain_KV.scatter_(1, torch.tensor(self.tokens, dtype=torch.int64)[:, None], 1.0)
        if self.support is None:
            return self.probs
        p_KV = self.probs.new_zeros(len(self.tokens), vocab_size)
        p_KV[:, self.support] = self.probs
        return p_KV

    def believed(self, through: ConfidenceMap | None = None) -> list[float] | None:
        """c[K], read ``through`` a map if there is one; None without confidence. A map is the drafter's: what a copy
        says of itself is not read through it.
        """
        if self.confidence is None:
            return None
        own = None if self.source == "lookup" else through
        return chances(own, self.confidence, self.peaks)

    def survival(self, through: ConfidenceMap | None = None, tilt: Tilt = LEVEL) -> list[float] | None:
        """a[K], the running product of c_k as they are ``believed``, those of the drafter tilted; None without
        confidence.
        """
        believed = self.believed(through)
        if believed is None:
            return None
        return [*accumulate(believed if self.source == "lookup" else tilt.tilted(believed), mul)]

    def teaches(self, tilt: Tilt, through: ConfidenceMap | None, round: Round) -> Tilt:
        """The request's tilt after the round that these drafts were made for; copies teach nothing of the drafter."""
        believed = self.believed(through)
        if believed is None or self.source == "lookup":
            return tilt
        return tilt.after(believed, min(round.observed, len(believed)), round.accepted)


class DrafterState(Protocol):
    """One request on the drafter."""

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        """Propose tokens after ids[-1], the anchor; ids are all committed ids and stay the loop's own.

        features[n, L*d] are the rows of the positions committed since the last call, never the anchor's: at
        every call the rows received so far are those of ids[:-1]. Each token comes from `sample`, slots from
        0; `slots` of them, as many as the state usually drafts if None.
        """
        ...


def verify_all(drafted: int, survival: Sequence[float] | None) -> int:
    """The default hook: every draft is verified."""
    return drafted


def always(rounds: Sequence[Round], source: Source) -> bool:
    """The default: every round drafts."""
    return True


class OneRequest:
    """One request of the reference loop, stage by stage: ``start``, then rounds of ``propose`` and ``settle``.

    ``generate`` says what the arguments mean. Raises UserError for an empty prompt, max_tokens < 1, or a prompt that
    leaves no room.
    """

    def __init__(
        self,
        target: TargetState,
        drafter: DrafterState | None,
        prompt_ids: list[int],
        *,
        sampling: Sampling,
        draws: Draws,
        max_tokens: int,
        lookup: DrafterState | None = None,
        stop_ids: Collection[int] = (),
        when: WhenToDraft = always,
        context_limit: int | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        self._limit = _output_limit(len(prompt_ids), max_tokens, context_limit)
        self._target, self._drafter, self._lookup, self._when = target, drafter, lookup, when
        self.sampling, self._coupling = sampling, coupling
        self._draws = CertainDraws() if sampling.greedy or coupling is not None else draws
        self._stops, self._prompt = frozenset(stop_ids), len(prompt_ids)
        self.ids = list(prompt_ids)
        """Prompt and output."""
        self.rounds: list[Round] = []
        self._unseen: list[Tensor] = []  # features that the drafter has not been given yet

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return bool(self.rounds) and self.rounds[-1].finish is not None

    def start(self) -> Round:
        """Read the prompt and draw the first token."""
        step = self._target.extend(self.ids, logits=1)
        (p_V,) = self._law(step.logits_NV, 0)
        token = self._draws.categorical(p_V, round=0, slot=0, purpose=Purpose.RESIDUAL)
        return self._commit(Draft([]), 0, Verdict(0, token), step.features_TF)

    def propose(self, *, drafting: bool = True, slots: int | None = None) -> Draft:
        """The next round's drafts; none where the last token of the room is due, which is always the target's own.
        ``drafting`` False: the drafter is not asked; ``slots``: for how many tokens it is (None: its usual number).
        """
        draft = Draft([])
        if self._lookup is not None and self._room > 1 and self._when(self.rounds, "lookup"):
            draft = self._lookup.draft(self.ids, None, self._sample)
        asked = drafting and not draft.tokens and self._room > 1
        if self._drafter is not None and asked and self._when(self.rounds, "drafter"):
            features_TF = torch.cat(self._unseen) if self._unseen else None
            draft, self._unseen = self._drafter.draft(self.ids, features_TF, self._sample, slots), []
        return draft

    def settle(self, draft: Draft, length: int) -> Round:
        """Verify the first ``length`` drafts, or as many as there are and the room can hold, and commit what stands."""
        length = max(0, min(length, len(draft.tokens), self._room - 1))
        start, kept = self._target.length, draft.tokens[:length]
        step = self._target.extend([self.ids[-1], *kept], logits=length + 1)
        p_t_NV = self._law(step.logits_NV, 0)
        p_d_KV = draft.dense(p_t_NV.shape[-1])[:length].to(p_t_NV.device)
        verdict = verify(kept, p_d_KV, p_t_NV, self._draws, len(self.rounds))
        committed = verdict.accepted + 1  # anchor and accepted drafts; the token after them has not run yet
        self._target.truncate(start + committed)
        return self._commit(draft, length, verdict, None if step.features_TF is None else step.features_TF[:committed])

    @property
    def _written(self) -> int:
        """Output tokens so far, and the output position of the next one."""
        return len(self.ids) - self._prompt

    @property
    def _room(self) -> int:
        """Output tokens that may still come."""
        return self._limit - self._written

    def _law(self, logits_NV: Tensor, slot: int, support: Tensor | None = None) -> Tensor:
        """What the next tokens are drawn from, those of the slots from ``slot`` on: p[N, V]."""
        p_NV = distribution(logits_NV, self.sampling)
        return p_NV if self._coupling is None else self._coupling.law(p_NV, self._written + slot, support)

    def _sample(self, slot: int, logits_V: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
        (p_V,) = self._law(logits_V[None], slot, support)
        return self._draws.categorical(p_V, round=len(self.rounds), slot=slot, purpose=Purpose.DRAFT), p_V

    def _commit(self, draft: Draft, length: int, verdict: Verdict, features_TF: Tensor | None) -> Round:
        """Take over a round's tokens, and the features of what has run."""
        tokens, finish = cut([*draft.tokens[: verdict.accepted], verdict.next_token], self._room, self._stops)
        accepted = min(verdict.accepted, len(tokens))
        self.ids += tokens
        self._unseen += [] if features_TF is None else [features_TF]
        self.rounds.append(Round(len(self.rounds), tuple(tokens), draft.slots, length, accepted, finish, draft.source))
        return self.rounds[-1]


def generate(
    target: TargetState,
    drafter: DrafterState | None,
    prompt_ids: list[int],
    *,
    sampling: Sampling,
    draws: Draws,
    max_tokens: int,
    lookup: DrafterState | None = None,
    stop_ids: Collection[int] = (),
    verify_length: VerifyLength = verify_all,
    when: WhenToDraft = always,
    calibration: ConfidenceMap | None = None,
    context_limit: int | None = None,
    coupling: Coupling | None = None,
) -> Iterator[Round]:
    """Yield the rounds of one completion; without a draft, or while ``when`` says no, one token a round.

    ``lookup`` reads ids alone and goes before the drafter, which drafts where it proposes nothing: the committed ids
    decide between the two and no draw of the round, so both keep the target's law. Features of rounds that the drafter
    sat out come with its next call. ``verify_length`` sees survival as ``calibration`` reads the drafter's confidence,
    tilted by what this request's rounds have shown.

    The joined tokens of the rounds have exactly the law of plain decoding. Output ends behind the first stop
    id (which is kept), after max_tokens, or where prompt and output together fill context_limit positions.
    Never more is verified than the remaining room can hold: the room depends on the past only, so this is
    lossless. With ``coupling`` the tokens are drawn by its noise alone and not from ``draws``: the same text, that of
    plain decoding, whatever drafts and hooks do. Raises UserError as ``OneRequest`` does.
    """
    request = OneRequest(
        target,
        drafter,
        prompt_ids,
        sampling=sampling,
        draws=draws,
        max_tokens=max_tokens,
        lookup=lookup,
        stop_ids=stop_ids,
        when=when,
        context_limit=context_limit,
        coupling=coupling,
    )
    yield request.start()
    tilt = LEVEL
    while not request.finished:
        draft = request.propose()
        asked = verify_length(len(draft.tokens), draft.survival(calibration, tilt)) if draft.tokens else 0
        round = request.settle(draft, asked)
        tilt = draft.teaches(tilt, calibration, round)
        yield round


def _output_limit(prompt: int, max_tokens: int, context_limit: int | None) -> int:
    if prompt == 0:
        raise UserError("the prompt is empty; expected at least one token id")
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; expected at least 1")
    if context_limit is None:
        return max_tokens
    if prompt >= context_limit:
        raise UserError(f"the prompt has {prompt} tokens, the context holds {context_limit}; shorten the prompt")
    return min(max_tokens, context_limit - prompt)


def cut(tokens: list[int], room: int, stops: frozenset[int]) -> tuple[list[int], Finish | None]:
    """Cut behind the first stop id or at the end of the room, and say which it was (a stop id wins)."""
    tokens = tokens[:room]
    for i, token in enumerate(tokens):
        if token in stops:
            return tokens[: i + 1], "stop"
    return tokens, "length" if len(tokens) == room else None
