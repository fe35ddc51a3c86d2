"""Adaptive decoding on a machine that others use as well: it drafts where that pays, and hardly loses where not."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from dspark.decoding import planners
from dspark.decoding.planners import Adaptive, lengths_of
from dspark.speculation.cost import CostModel
from dspark.speculation.planner.guard import Guard
from made_up import BLOCK, Machine, Texts, costs, gains

LENGTHS = lengths_of(BLOCK)
MACHINE = costs()
# As a start-up found them while the machine was nearly three times as slow, and drafts by chance dearer still.
BAD_MINUTE = costs(row=0.04, draft=0.22, drafted=0.07, scale=2.7)
FOUR = costs(row=0.06)
SIXTEEN = costs(row=0.05)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that planning itself takes here is none of that machine's."""
    monkeypatch.setattr(planners.time, "perf_counter", lambda: 0.0)


def mean_gain(
    settings: Adaptive | int, texts: Texts, requests: int = 1, true: CostModel = MACHINE, calm: bool = False
) -> float:
    """Over plain decoding, of three hours."""
    steps = 800 if requests == 1 else 400
    hours = [(Machine(true, seed, calm), replace(texts, seed=seed)) for seed in range(3)]
    return fmean(gains(machine, each, settings, requests, steps) for machine, each in hours)
