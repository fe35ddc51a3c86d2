"""Drafts that end before a slot without numbers: exact, wherever that is decided by tokens that were drawn already."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dspark.speculation.loop import Draft
from dspark.speculation.planner.past import Past
from dspark.speculation.planner.scheduler import Form, Memory, Scheduler
from dspark.speculation.recalibration import LEVEL
from dspark.speculation.sampling import Sampling
from enumeration import TableDrafter, after, assert_law, constant_logits, measure
from test_scheduled_law import FORMS, Case, run, timed

A = 0
TARGET, DRAFTER = constant_logits(0.7, 0.3), constant_logits(0.4, 0.6)


class BreaksBehindA(TableDrafter):
    """Its second slot has no numbers where the first one's token is A."""

    def draft(self, ids: list[int], features: Any, sample: Any, slots: int | None = None) -> Draft:
        draft = super().draft(ids, features, sample, slots)
        return draft.sound(1) if draft.tokens[0] == A else draft


class DropsAll(TableDrafter):
    """Control: such a draft is dropped with the token before the slot."""

    def draft(self, ids: list[int], features: Any, sample: Any, slots: int | None = None) -> Draft:
        draft = super().draft(ids, features, sample, slots)
        return draft.sound(0) if draft.tokens[0] == A else draft


def test_a_sound_part_has_all_of_its_slots_and_knows_of_the_others() -> None:
    rows = torch.arange(6.0).view(3, 2)
    draft = Draft([5, 6, 7], rows, torch.tensor([5, 9]), [0.0, 2.0, 4.0], [1.0, 3.0, 5.0])
    part = draft.sound(2)
    assert replace(draft, drawn=[0.5, 0.25, 0.125]).sound(2).drawn == [0.5, 0.25] and part.drawn is None
    assert (part.tokens, part.broken, part.slots, part.support) == ([5, 6], 1, 3, draft.support)
    assert part.probs is not None and torch.equal(part.probs, rows[:2])
    assert (part.confidence, part.peaks) == ([0.0, 2.0], [1.0, 3.0])
    assert draft.sound(3) is draft and draft.slots == 3
    nothing = part.sound(0)
    assert (nothing.tokens, nothing.slots, nothing.probs, nothing.confidence, nothing.peaks) == ([], 3, *[None] * 3)


def test_a_draft_that_ends_before_a_broken_slot_keeps_the_law() -> None:
    def found(drafter: type[TableDrafter]) -> Any:
        return measure(after(A, TARGET), lambda: drafter(DRAFTER, 2), Sampling(1.0), tokens=4, rounds=2)

    sound = found(BreaksBehindA)
    assert_law(sound)
    assert sound.drafted > sound.verified
    bent = found(DropsAll)
    assert bent.accepted > 0 and bent.error > 0.01
    # x_1 = A is never verified, and x_1 = B with .6 * .3 / .6: the rest of the time the target says A.
    assert bent.marginal(1, A) == pytest.approx(0.4 * 0.7 + 0.3, abs=1e-12)


def stairs(requests: int, drafts: int) -> Any:
    """The second draft is free behind the first."""
    return np.array([1.0, 1.6, 1.7])[: drafts + 1]


@pytest.mark.parametrize("form", FORMS)
def test_plans_count_broken_slots_since_nobody_knew_of_them_before(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([TARGET], [DRAFTER], 2, lambda prefix, slot: math.log(0.7 / 0.3), drafter=BreaksBehindA)
    start, memory = [(0, 1)], Memory((Past.nothing(1, 2),), (LEVEL,))
    scheduler = Scheduler(timed(stairs), form)
    sound = run(case, scheduler, start, memory, steps=2)
    assert sound.drafted > sound.verified > sound.accepted > 0 and sound.error < 1e-12
    if form != "price":
        return
    # Control: the price of the first draft knows that there is no second one, so that it knows the first.
    monkeypatch.setattr(Draft, "slots", property(lambda draft: len(draft.tokens)))
    assert run(case, scheduler, start, memory, steps=2).error > 0.01
