"""What drafting costs beside plain steps, learned on a machine whose speed wanders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspark.decoding.pace import Pace


def ran(pace: Pace, dearer: float, plain_every: int, steps: int = 4000) -> None:
    """Steps of both kinds on a machine that is up to twice as slow, for hundreds of steps at a time."""
    numbers = np.random.default_rng(0)
    for step in range(steps):
        wandering = math.exp(0.35 * math.sin(step / 150)) * numbers.lognormal(0, 0.08)
        drafting = step % plain_every > 0
        pace.after(drafting, wandering * (dearer if drafting else 1.0))


@pytest.mark.parametrize("dearer", [0.8, 1.0, 1.15, 1.4])
@pytest.mark.parametrize("plain_every", [8, 40])
def test_the_ratio_is_found_whatever_else_the_machine_does(dearer: float, plain_every: int) -> None:
    pace = Pace()
    ran(pace, dearer, plain_every)
    assert pace.dearer == pytest.approx(dearer, rel=0.06)


def test_steps_of_one_kind_say_nothing_of_the_ratio() -> None:
    pace = Pace()
    for _ in range(100):
        pace.after(True, 3.0)
    assert pace.dearer == 1.0


def test_a_step_that_was_held_up_says_nothing() -> None:
    """Not twice either, as what comes before the next one and behind the last; most of them would."""
    for held_up, found in ((1, 1.0), (2, 1.0), (12, 3.0)):
        pace = Pace()
        for step in range(40):
            pace.after(step % 2 == 0, 1.0)
        for step in range(2 * held_up):
            pace.after(step % 2 == 0, 3.0 if step % 2 == 0 else 1.0)
        assert pace.dearer == pytest.approx(found)


def test_planning_is_counted_by_kind_and_by_its_median() -> None:
    pace = Pace()
    assert pace.planning(True) == 0.0
    for step in range(100):
        pace.planned(True, 2e-3 if step % 3 else 1.0)
        pace.planned(False, 1e-4)
    assert pace.planning(True) == pytest.approx(2e-3) and pace.planning(False) == pytest.approx(1e-4)


def test_nothing_is_compared_with_what_another_model_said() -> None:
    pace = Pace()
    for step in range(40):
        if step % 4 == 0:
            pace.anew()
        pace.after(step % 2 == 0, 1.0 if step % 8 < 4 else 5.0)
    assert pace.dearer == 1.0


def test_a_machine_that_changes_is_noticed_after_a_few_comparisons() -> None:
    pace = Pace()
    for step in range(400):
        pace.after(step % 8 != 0, 1.0)
    for step in range(40):
        pace.after(step % 8 != 0, 1.5 if step % 8 else 1.0)
    assert 1.33 < pace.dearer < 1.51
