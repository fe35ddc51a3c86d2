"""Sampling for many requests at once, each with its own settings and its own draws.

Row for row the numbers are those of the reference loop: the same distribution, the same uniform, the same inverse CDF.

Legend: R requests, N rows of the target's logits, V vocabulary or a draft's support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dspark.decoding.request import Running
from dspark.nn.row_kernels import can_search, first_largest
from dspark.speculation.draws import Purpose, invert_rows
from dspark.speculation.loop import Draft
from dspark.speculation.rejection import Verdict, acceptance, residual
from dspark.speculation.sampling import Sampling, distribution, greedy_ids


def sample(logits_RV: Tensor, rows: Sequence[Running], slot: int, purpose: Purpose) -> tuple[Tensor, Tensor]:
    """One index for each row ``int64 [R]``, and the probabilities ``[R, V]`` that it was drawn from."""
    samplings = {row.request.sampling for row in rows}
    if all(sampling.greedy for sampling in samplings):
        ids_R = largest_ids(logits_RV)
        certain_RV = torch.zeros(logits_RV.shape, dtype=_precision(logits_RV), device=logits_RV.device)
        return ids_R, certain_RV.scatter_(-1, ids_R[:, None], 1.0)
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


def largest_ids(logits: Tensor) -> Tensor:
    """``greedy_ids``, compiled where it can be; they raise ArithmeticError where a row holds NaN."""
    if not can_search(logits):
        return greedy_ids(logits)
    ids = first_largest(logits)
    return ids if bool((ids >= 0).all()) else greedy_ids(logits)


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
        else:
            found = _sampled(distribution(mine_NV, sampling), *some, [drafts[i] for i in members])
        for i, verdict in zip(members, found, strict=True):
            verdicts[i] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


def by_sampling(rows: Sequence[Running]) -> Iterator[tuple[Sampling, list[int]]]:
    """Numbers of the rows that share their settings."""
    groups: dict[Sampling, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.request.sampling, []).append(index)
    yield from groups.items()


def _greedy(logits_NV: Tensor, tokens: Sequence[list[int]]) -> list[Verdict]:
    """Temperature 0: both laws are certain, and drafts stand while they are the target's own tokens."""
    own = largest_ids(logits_NV).tolist()
    verdicts, first = [], 0
    for drafted in tokens:
        accepted = next((k for k, token in enumerate(drafted) if token != own[first + k]), len(drafted))
        verdicts.append(Verdict(accepted, own[first + accepted]))
        first += len(drafted) + 1
    return verdicts


def _sampled(
    p_t_NV: Tensor, rows: Sequence[Running], tokens: Sequence[list[int]], drafts: Sequence[Draft]
) -> list[Verdict]:
    """Accept from the left while U < min(1, p_t / p_d), then one token of the residual or of the target's own law."""
    accepted, last_laws, u = [], [], []
    first = 0
    for row, drafted, draft in zip(rows, tokens, drafts, strict=True):
        p_t = p_t_NV[first : first + len(drafted) + 1]
        first += len(drafted) + 1
        stands = _stands(row, drafted, draft, p_t)
        accepted.append(stands)
        rejected = stands < len(drafted)
        last_laws.append(residual(_dense(draft, stands, p_t.shape[-1]), p_t[stands]) if rejected else p_t[stands])
        u.append(row.draws.uniform(round=len(row.rounds), slot=stands, purpose=Purpose.RESIDUAL))
    laws_RV = torch.stack([law.double() for law in last_laws])
    own = invert_rows(laws_RV, torch.tensor(u, dtype=torch.float64)).tolist()
    return [Verdict(n, token) for n, token in zip(accepted, own, strict=True)]


def _stands(row: Running, drafted: list[int], draft: Draft, p_t_NV: Tensor) -> int:
    """How many drafts are accepted."""
    if not drafted:
        return 0
    ids = torch.tensor(drafted, device=p_t_NV.device)
    places = torch.arange(len(drafted), device=p_t_NV.device)
    inside = ids if draft.support is None else (draft.support == ids[:, None]).int().argmax(dim=-1)
    pairs = zip(draft.probs[places, inside].tolist(), p_t_NV[places, ids].tolist(), strict=True)
    for k, (p_d, p_t) in enumerate(pairs):
        if row.draws.uniform(round=len(row.rounds), slot=k, purpose=Purpose.ACCEPT) >= acceptance(p_d, p_t):
            return k
    return len(drafted)


def _dense(draft: Draft, slot: int, vocab_size: int) -> Tensor:
    """p_d ``[V]`` of one slot over the target's vocabulary."""
    p_V: Tensor = draft.probs[slot]
    if draft.support is None:
        return p_V
    return p_V.new_zeros(vocab_size).index_copy_(0, draft.support, p_V)


def _precision(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
