"""Drafts of many requests, read, tilted and learned from at once: what numbers one by one come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dspark.speculation.acceptance import Round
from dspark.speculation.confidence import Calibrations, Isotonic, Logistic, Platt
from dspark.speculation.loop import Draft
from dspark.speculation.planner import joint
from dspark.speculation.planner.joint import JointPlanning, Planned
from dspark.speculation.planner.scheduler import Memory, Scheduler
from dspark.speculation.recalibration import Tilt
from dspark.speculation.rows import as_long, side_by_side
from dspark.speculation.sampling import Sampling

BLOCK = 4
GREEDY, DRAWN = Sampling(), Sampling(1.0)
logistic = Logistic((1.0, 0.8, 0.7, 0.6), (0.2, 0.1, 0.3, 0.2), (-0.5, 0.0, 0.1, 0.2))
MAPS: list[Any] = [logistic, Platt((0.9,) * 4, (0.1,) * 4), Isotonic(((-1.0, 2.0),) * 4, ((0.1, 0.9),) * 4), None]
logits = st.lists(st.sampled_from([-900.0, -30.0, -1.0, 0.0, 0.4, 2.0, 30.0]), min_size=BLOCK, max_size=BLOCK)


@st.composite
def drafts(draw: Any) -> Draft:
    """One of any kind: the drafter's with and without confidence or peaks, or broken, a copy, or none at all."""
    kind = draw(st.sampled_from(["own", "own", "no peaks", "silent", "broken", "copy", "none"]))
    if kind == "none":
        return Draft([])
    count = draw(st.integers(1, BLOCK))
    confidence, peaks = (draw(logits)[:count] for _ in range(2))
    if kind == "copy":
        return Draft([0] * count, confidence=confidence, source="lookup")
    if kind == "silent":
        return Draft([0] * count)
    draft = Draft([0] * count, confidence=confidence, peaks=None if kind == "no peaks" else peaks)
    return draft.sound(draw(st.integers(0, count))) if kind == "broken" else draft


requests = st.lists(st.tuples(drafts(), st.sampled_from([GREEDY, DRAWN]), st.floats(-1, 1)), min_size=1, max_size=12)


def step(few: int, planning: JointPlanning, memory: Memory, asked: list[Any]) -> tuple[Planned, Memory]:
    """A step that verifies what it plans to, half of which stands."""
    made, samplings = [draft for draft, _, _ in asked], [sampling for _, sampling, _ in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "FEW", few)
        planned = planning.plan(memory, np.arange(len(asked)), samplings, made)
        each = zip(made, planned.lengths, strict=True)
        rounds = [Round(1, (0,) * (n // 2 + 1), draft.slots, n, n // 2, None, draft.source) for draft, n in each]
        return planned, planning.after(memory, planned, rounds, np.array([], dtype=np.int64))


@given(requests, st.sampled_from(MAPS))
@settings(deadline=None)
def test_arrays_read_tilt_and_learn_what_numbers_one_by_one_do(asked: list[Any], fitted: Any) -> None:
    unread = any(d.source == "drafter" and d.confidence and d.peaks is None for d, _, _ in asked)
    assume(fitted is not logistic or not unread)
    scheduler = Scheduler(lambda requests, drafted, drafts: 1.0 + 0.11 * np.arange(drafts + 1))
    maps = {} if fitted is None else {GREEDY: fitted, DRAWN: fitted}
    planning = JointPlanning(scheduler, Calibrations(maps), BLOCK)
    memory = planning.begin(len(asked), BLOCK)
    memory = replace(memory, tilts=tuple(Tilt(tilt, 6.0) for _, _, tilt in asked))
    (one, learned), (other, also) = (step(few, planning, memory, asked) for few in (0, 10**6))
    for row, same in zip(one.present.rows, other.present.rows, strict=True):
        assert row == pytest.approx(same, rel=1e-9, abs=1e-300)
    assert one.lengths == other.lengths
    assert np.array(learned.tilts) == pytest.approx(np.array(also.tilts), rel=1e-9, abs=1e-12)
    assert learned.learned.keys() == also.learned.keys()
    for regime, each in learned.learned.items():
        assert each.weights == pytest.approx(also.learned[regime].weights, rel=1e-9, abs=1e-12)


@given(st.lists(st.lists(st.floats(0, 1), max_size=5), max_size=6))
def test_rows_side_by_side_are_rows_again(rows: list[list[float]]) -> None:
    beside, lengths = side_by_side(rows)
    assert beside.shape == (len(rows), max(map(len, rows), default=0))
    assert as_long(beside, lengths) == rows
    assert side_by_side(rows, 7)[0].sum() == pytest.approx(sum(map(sum, rows)))
