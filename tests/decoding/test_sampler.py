"""Verdicts of requests that are settled together: each its own, to the last bit of its draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dspark.decoding.request import Request, Running
from dspark.decoding.sampler import settle
from dspark.speculation.draws import Purpose, SeededDraws
from dspark.speculation.loop import Draft
from dspark.speculation.rejection import Verdict, verify
from dspark.speculation.sampling import Sampling, distribution

WIDTH = 4096
SAMPLING = Sampling(1.0)


class Fixed(SeededDraws):
    """The same number for every draw."""

    def __init__(self, u: float) -> None:
        super().__init__(0)
        self._u = u

    def uniform(self, *, round: int, slot: int, purpose: Purpose) -> float:
        return self._u


def row(u: float) -> Running:
    return Running(Request("r", [1], SAMPLING, 0, 8), Fixed(u), 8)


def verdicts(rows: Sequence[Running], logits: Sequence[Tensor], drafts: Sequence[list[int]]) -> list[Verdict]:
    return settle(torch.cat(list(logits)), rows, [Draft(d) for d in drafts], [len(d) for d in drafts])


@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
def test_a_draw_at_an_edge_does_not_depend_on_a_neighbours_fate(spread: float) -> None:
    # Sums of another order or precision put the edge between two tokens elsewhere, by a last bit.
    generator = torch.Generator().manual_seed(0)
    mine, other = torch.randn(1, WIDTH, generator=generator) * spread, torch.randn(2, WIDTH, generator=generator)
    p = distribution(mine, SAMPLING)
    cumulated = p.double().cumsum(-1)[0]
    unlikely, likely = [int(other[0].argmin())], [int(other[0].argmax())]
    for token in p[0].topk(60).indices.tolist():
        edge = math.floor(float(cumulated[token] / cumulated[-1]) * 2**53)
        for u in ((edge + step) * 2.0**-53 for step in (-2, -1, 0, 1, 2)):
            (alone,) = verdicts([row(u)], [mine], [[]])
            assert alone == verify([], torch.empty(0, WIDTH), p, row(u).draws, 0)
            for drafted, accepted in ((unlikely, 0), (likely, 1)):
                beside = verdicts([row(u), row(0.9999 * (1 - accepted))], [mine, other], [[], drafted])
                assert beside[0] == alone and beside[1].accepted == accepted
