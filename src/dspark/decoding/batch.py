"""Plain decoding of many requests at once: a finished request's slot goes to the next one.

Legend: T tokens of a step, R requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from dspark.decoding.request import Completion, Request
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Finish
from dspark.speculation.draws import Purpose, SeededDraws, invert_rows
from dspark.speculation.sampling import Sampling, distribution
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch

# Tokens of one prefill step: enough rows to keep the matrix products efficient, few enough to bound the mask.
PREFILL_TOKENS = 1024


@dataclass
class _Running:
    """A request in a slot; its last output token has not been run yet."""

    request: Request
    draws: SeededDraws
    output_ids: list[int] = field(default_factory=list)


@torch.inference_mode()
def decode(target: Target, requests: Iterable[Request], slots: int, capacity: int) -> Iterator[Completion]:
    """Answer ``requests`` with at most ``slots`` of them under way; completions come in the order they finish.

    ``capacity`` bounds prompt plus answer of one request in tokens; the K/V memory is ``slots * capacity`` rows and
    no more.
    """
    waiting = iter(requests)
    cache = target.new_cache(slots, capacity)
    running: dict[int, _Running] = {}
    while True:
        free = [slot for slot in range(slots) if slot not in running]
        admitted = dict(zip(free, islice(waiting, len(free)), strict=False))
        for slot, request in admitted.items():
            _check_fits(request, capacity)
            running[slot] = _Running(request, SeededDraws(request.seed))
        for group in _prefill_groups(admitted):
            batch = RaggedBatch(cache, list(group), [len(r.prompt_ids) for r in group.values()])
            ids = torch.tensor([i for r in group.values() for i in r.prompt_ids], device=target.device)
            hidden_TD = target.forward(ids, batch).hidden_TD
            ends = torch.tensor(batch.counts, device=target.device).cumsum(0) - 1
            _append(target.head(hidden_TD[ends]), [running[slot] for slot in group])
        if not running:
            return
        for slot in sorted(running):
            reason = _finished(running[slot], target.stop_ids)
            if reason is not None:
                done = running.pop(slot)
                cache.release(slot)
                yield Completion(done.request, done.output_ids, reason)
        if running:
            order = sorted(running)
            batch = RaggedBatch(cache, order, [1] * len(order))
            ids = torch.tensor([running[slot].output_ids[-1] for slot in order], device=target.device)
            _append(target.head(target.forward(ids, batch).hidden_TD), [running[slot] for slot in order])


def _check_fits(request: Request, capacity: int) -> None:
    needed = len(request.prompt_ids) + request.max_tokens
    if needed > capacity:
        raise UserError(
            f"request {request.id} needs {needed} positions (prompt {len(request.prompt_ids)} and answer"
            f" {request.max_tokens}), {capacity} are allowed; shorten it"
        )


def _prefill_groups(admitted: dict[int, Request]) -> Iterator[dict[int, Request]]:
    """Split new requests into steps of about PREFILL_TOKENS tokens."""
    group: dict[int, Request] = {}
    for slot, request in admitted.items():
        group[slot] = request
        if sum(len(r.prompt_ids) for r in group.values()) >= PREFILL_TOKENS:
            yield group
            group = {}
    if group:
        yield group


def _append(logits_RV: Tensor, rows: list[_Running]) -> None:
    """Sample one token a row, each with its request's settings and draws."""
    by_sampling: dict[Sampling, list[int]] = {}
    for index, row in enumerate(rows):
        by_sampling.setdefault(row.request.sampling, []).append(index)
    for sampling, indices in by_sampling.items():
        p_RV = distribution(logits_RV[indices], sampling)
        u_R = torch.tensor(
            [rows[i].draws.uniform(round=len(rows[i].output_ids), slot=0, purpose=Purpose.RESIDUAL) for i in indices],
            dtype=torch.float64,
        )
        for index, token in zip(indices, invert_rows(p_RV, u_R).tolist(), strict=True):
            rows[index].output_ids.append(token)


def _finished(row: _Running, stop_ids: frozenset[int]) -> Finish | None:
    if row.output_ids[-1] in stop_ids:
        return "stop"
    return "length" if len(row.output_ids) >= row.request.max_tokens else None
