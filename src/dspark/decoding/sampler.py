"""Sampling for many requests at once, each with its own settings and its own draws.

Row for row the numbers are those of the reference loop: the same distribution, the same uniform, the same inverse CDF,
or the same noise (a coupled request's).

Legend: R requests, N rows of the target's logits, V vocabulary or a draft's support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

import torch
from torch import Tensor

from dspark.decoding.request import Running
from dspark.kernels.law import can_make_law
from dspark.kernels.rest import Rest, draw_rests
from dspark.kernels.rows import can_search, first_largest
from dspark.speculation.draws import Purpose, invert_rows
from dspark.speculation.loop import Draft
from dspark.speculation.rejection import Verdict, acceptance, residual
from dspark.speculation.sampling import Sampling, distribution, greedy_ids


def sample(
    logits_RV: Tensor, rows: Sequence[Running], slot: int, purpose: Purpose, support: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """One index for each row ``int64 [R]``, and the probabilities ``[R, V]`` that it was drawn from (None: certain).

    ``support``: the target's ids of the columns, all of them if None. Coupled requests, whose tokens are certain given
    their noise, must be among themselves.
    """
    if all(row.request.sampling.greedy for row in rows):
        return torch.tensor(largest_ids(logits_RV), device=logits_RV.device), None
    if rows[0].coupling is not None:
        return _own_picks(logits_RV, rows, slot, support), None
    indices_R = torch.empty(len(rows), dtype=torch.int64, device=logits_RV.device)
    p_RV = torch.empty(logits_RV.shape, dtype=_precision(logits_RV), device=logits_RV.device)
    for sampling, members in by_sampling(rows):
        p = distribution(logits_RV[members], sampling)
        p_RV[members] = p
        if sampling.greedy:
            indices_R[members] = p.argmax(dim=-1)
        else:
            u = [rows[i].draws.uniform(round=len(rows[i].rounds), slot=slot, purpose=purpose) for i in members]
            indices_R[members] = invert_rows(p, torch.tensor(u, dtype=torch.float64))
    return indices_R, p_RV


def _own_picks(logits_RV: Tensor, rows: Sequence[Running], slot: int, support: Tensor | None) -> Tensor:
    indices_R = torch.empty(len(rows), dtype=torch.int64, device=logits_RV.device)
    for sampling, members in by_sampling(rows):
        laws_1V = distribution(logits_RV[members], sampling).split(1)
        indices_R[members] = torch.cat(
            [rows[i].picks(p_1V, slot, support) for i, p_1V in zip(members, laws_1V, strict=True)]
        )
    return indices_R


def largest_ids(logits_NV: Tensor) -> list[int]:
    """``greedy_ids``, compiled where it can be; they raise ArithmeticError where a row's largest logit is no number."""
    if can_search(logits_NV):
        ids: list[int] = first_largest(logits_NV).tolist()
        if min(ids) >= 0:
            return ids
    return [int(index) for index in greedy_ids(logits_NV).tolist()]


def settle(
    logits_NV: Tensor, rows: Sequence[Running], drafts: Sequence[Draft], lengths: Sequence[int]
) -> list[Verdict]:
    """Rejection sampling of every request's draft, cut to ``lengths[i]`` tokens (``rejection.verify`` for many).

    ``logits_NV``: the target's after the anchor and after each of the drafts that were run, request by request.
    """
    firsts = [sum(lengths[:i]) + i for i in range(len(rows))]
    verdicts: list[Verdict | None] = [None] * len(rows)
    for sampling, members in by_sampling(rows):
        chosen = [firsts[i] + k for i in members for k in range(lengths[i] + 1)]
        # Mostly all requests share their settings: a copy of all their logits takes longer than their argmax.
        mine_NV = logits_NV if len(members) == len(rows) else logits_NV[chosen]
        some = ([rows[i] for i in members], [drafts[i].tokens[: lengths[i]] for i in members])
        if sampling.greedy:
            found = _greedy(mine_NV, some[1])
        elif rows[members[0]].coupling is not None:
            found = _coupled(distribution(mine_NV, sampling), *some)
        else:
            found = _sampled(distribution(mine_NV, sampling), *some, [drafts[i] for i in members])
        for i, verdict in zip(members, found, strict=True):
            verdicts[i] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


def settle_finite(
    logits_NV: Tensor, rows: Sequence[Running], drafts: Sequence[Draft], lengths: Sequence[int]
) -> list[Verdict | None]:
    """``settle``; None for requests of whose logits one is NaN or the largest infinite: ArithmeticError is about them.

    Searched only where ``settle`` has failed, so it costs nothing; draws are keyed, so the others' are the same again.
    """
    try:
        return [*settle(logits_NV, rows, drafts, lengths)]
    except ArithmeticError:
        broken_N = ~logits_NV.amax(dim=-1).isfinite()  # the largest of NaN and anything is NaN
        apart = broken_N.split([length + 1 for length in lengths])
        well = [i for i, mine_n in enumerate(apart) if not bool(mine_n.any())]
        if len(well) == len(rows):
            raise
    mine_nV = logits_NV.split([length + 1 for length in lengths])
    verdicts: list[Verdict | None] = [None] * len(rows)
    if well:
        kept = [rows[i] for i in well], [drafts[i] for i in well], [lengths[i] for i in well]
        for i, verdict in zip(well, settle(torch.cat([mine_nV[i] for i in well]), *kept), strict=True):
            verdicts[i] = verdict
    return verdicts


def by_sampling(rows: Sequence[Running]) -> Iterator[tuple[Sampling, list[int]]]:
    """Numbers of the rows that share their settings, and are coupled or not."""
    groups: dict[tuple[Sampling, bool], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.request.sampling, row.coupling is not None), []).append(index)
    yield from ((sampling, members) for (sampling, _), members in groups.items())


def _greedy(logits_NV: Tensor, tokens: Sequence[list[int]]) -> list[Verdict]:
    """Temperature 0: both laws are certain."""
    return _while_equal(largest_ids(logits_NV), tokens)


def _coupled(p_t_NV: Tensor, rows: Sequence[Running], tokens: Sequence[list[int]]) -> list[Verdict]:
    """Both laws are certain given a request's noise."""
    laws_nV = p_t_NV.split([len(drafted) + 1 for drafted in tokens])
    own = [token for row, p_nV in zip(rows, laws_nV, strict=True) for token in row.picks(p_nV).tolist()]
    return _while_equal(own, tokens)


def _while_equal(own: Sequence[int], tokens: Sequence[list[int]]) -> list[Verdict]:
    """Drafts stand while they are the target's ``own`` tokens, request by request."""
    verdicts, first = [], 0
    for drafted in tokens:
        accepted = next((k for k, token in enumerate(drafted) if token != own[first + k]), len(drafted))
        verdicts.append(Verdict(accepted, own[first + accepted]))
        first += len(drafted) + 1
    return verdicts


def _sampled(
    p_t_NV: Tensor, rows: Sequence[Running], tokens: Sequence[list[int]], drafts: Sequence[Draft]
) -> list[Verdict]:
    """Accept from the left while U < min(1, p_t / p_d), then one token of the residual or of the target's own law.

    Whatever is as wide as the vocabulary is done for all requests at once.
    """
    firsts = list(accumulate((len(drafted) + 1 for drafted in tokens), initial=0))
    chances = _chances(p_t_NV, firsts, tokens, drafts)
    accepted = [_stands(row, chance) for row, chance in zip(rows, chances, strict=True)]
    draws = zip(rows, accepted, strict=True)
    u = [row.draws.uniform(round=len(row.rounds), slot=n, purpose=Purpose.RESIDUAL) for row, n in draws]
    u_R, own_R = torch.tensor(u, dtype=torch.float64), torch.empty(len(rows), dtype=torch.int64)
    standing, rejected = ([i for i, n in enumerate(accepted) if (n < len(tokens[i])) == fell] for fell in (False, True))
    for mine in filter(None, (standing, rejected)):  # apart, since residuals are float64
        places = [firsts[i] + accepted[i] for i in mine]
        if len(mine) == len(p_t_NV):  # nobody drafted: every row is a draw, and none is copied
            own_R = invert_rows(p_t_NV, u_R).cpu()
        elif mine is standing:
            own_R[mine] = invert_rows(p_t_NV[places], u_R[mine]).cpu()
        else:
            own_R[mine] = _from_rests(p_t_NV, places, [drafts[i] for i in mine], [accepted[i] for i in mine], u_R[mine])
    return [Verdict(n, token) for n, token in zip(accepted, own_R.tolist(), strict=True)]


def _from_rests(
    p_t_NV: Tensor, places: Sequence[int], drafts: Sequence[Draft], slots: Sequence[int], u_n: Tensor
) -> Tensor:
    """An id for each rejected draft, of what its law leaves of the target's row at ``places``."""
    if not can_make_law(p_t_NV):
        return invert_rows(residual(_dense(drafts, slots, p_t_NV), p_t_NV[places]), u_n).cpu()
    taken = [_taken(*each) for each in zip(drafts, slots, strict=True)]
    rests = [Rest(place, *law) for place, law in zip(places, taken, strict=True)]
    ids_n, mass_n = draw_rests(p_t_NV, rests, u_n)
    if bool((mass_n > 0).all()):
        return ids_n
    if bool(mass_n.isnan().any()):
        raise ArithmeticError("a residual holds NaN, expected what is left of a distribution")
    nothing = (mass_n == 0).nonzero()[:, 0].tolist()  # rounding leaves no mass: the target's own law then
    ids_n[nothing] = invert_rows(p_t_NV[[places[i] for i in nothing]], u_n[nothing])
    return ids_n


def _taken(draft: Draft, slot: int) -> tuple[Tensor, Tensor | None]:
    """p_d of a slot and the ids that it is over, of a certain draft its own id alone."""
    if draft.probs is None:
        return torch.ones(1), torch.tensor(draft.tokens[slot : slot + 1])
    return draft.probs[slot].float().contiguous(), draft.support


def _chances(
    p_t_NV: Tensor, firsts: Sequence[int], tokens: Sequence[list[int]], drafts: Sequence[Draft]
) -> list[list[float]]:
    """Chance of each draft to be accepted, request by request."""
    drafted = [token for some in tokens for token in some]
    if not drafted:
        return [[] for _ in tokens]
    places = [first + k for first, some in zip(firsts, tokens, strict=False) for k in range(len(some))]
    p_t = p_t_NV[places, drafted].tolist()
    p_d = [p for draft, some in zip(drafts, tokens, strict=True) if some for p in _drawn_from(draft, some)]
    chances = iter([acceptance(d, t) for d, t in zip(p_d, p_t, strict=True)])
    return [list(islice(chances, len(some))) for some in tokens]


def _drawn_from(draft: Draft, tokens: Sequence[int]) -> Sequence[float]:
    """p_d of the tokens that were drawn."""
    if draft.probs is None:
        return [1.0] * len(tokens)
    if draft.drawn is not None:
        return draft.drawn[: len(tokens)]
    inside_K = torch.tensor(tokens, device=draft.probs.device)
    if draft.support is not None:
        inside_K = torch.searchsorted(draft.support, inside_K)
    drawn: list[float] = draft.probs[: len(tokens)].gather(-1, inside_K[:, None])[:, 0].double().tolist()
    return drawn


def _stands(row: Running, chances: Sequence[float]) -> int:
    """How many drafts are accepted."""
    for k, chance in enumerate(chances):
        if not row.draws.uniform(round=len(row.rounds), slot=k, purpose=Purpose.ACCEPT) < chance:  # NaN stops here
            return k
    return len(chances)


def _dense(drafts: Sequence[Draft], slots: Sequence[int], like_NV: Tensor) -> Tensor:
    """p_d ``[n, V]`` of one slot of each draft over the target's vocabulary."""
    dense_nV = like_NV.new_zeros(len(drafts), like_NV.shape[-1])
    for p_V, draft, slot in zip(dense_nV, drafts, slots, strict=True):
        if draft.probs is None:
            p_V[draft.tokens[slot]] = 1.0
        else:
            p_V[... if draft.support is None else draft.support] = draft.probs[slot].to(p_V)
    return dense_nV


def _precision(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
