"""Copies in steps without drafts: while they pay, and now and then to see whether they do."""

from __future__ import annotations

import math
import random

import pytest

from dspark.decoding.copying import Copying


def asked(
    gained: float, dearer: float, steps: int, noise: float = 0.0, found: float = 1.0, foretold: float = 1.0
) -> list[bool]:
    """In which of so many steps of 16 requests copies are looked for, and ``found`` in a share of them: such steps gain
    so much and are so much dearer, on a machine whose speed wanders where there is ``noise``; the cost model has
    ``foretold`` as much.
    """
    copying, looked, numbers, speed = Copying(), [], random.Random(0), 0.0
    for _ in range(steps):
        looked.append(copying.wanted)
        copies = copying.wanted and numbers.random() < found
        speed += numbers.gauss(0, noise / 3)
        took = (1 + dearer * copies) * math.exp(speed) * numbers.lognormvariate(0, noise)
        copying.after(copies, gained * copies, took, foretold if copies else 1.0, requests=16)
    return looked


@pytest.mark.parametrize("gained, dearer", [(0.2, 0.1), (0.1, 0.0)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_who_gains_goes_on(gained: float, dearer: float, noise: float) -> None:
    looked = asked(gained, dearer, 1000, noise)
    assert sum(looked) / 1000 > 0.88 and not all(looked), "with a look at steps without, now and then"
    assert all(asked(gained, dearer, 1000, noise, found=0.3)), "which come by themselves where few are found"


@pytest.mark.parametrize("gained, dearer", [(0.05, 0.2), (0.0, 0.1)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_who_loses_rests_for_as_long_as_it_lost(gained: float, dearer: float, noise: float) -> None:
    """Half a per cent of the time, and a credit, which is more where the requests are few."""
    looked = asked(gained, dearer, 8000, noise)
    assert 0 < sum(looked[4000:]) * (dearer - gained) < 0.008 * 4000
    assert sum(looked[:200]) < 40


def test_what_the_cost_model_foretells_is_believed_at_once() -> None:
    """And what it leaves out is learned: the same in the end."""
    looked = [asked(0.05, 0.2, 8000, foretold=foretold) for foretold in (1.2, 1.0, 1.4)]
    assert sum(looked[0][:60]) < sum(looked[1][:60])
    assert all(0 < sum(each[4000:]) * 0.15 < 0.008 * 4000 for each in looked)


def test_who_loses_and_then_gains_is_found_out() -> None:
    copying, looked = Copying(), []
    for step in range(1200):
        looked.append(wanted := copying.wanted)
        copying.after(wanted, (0.0 if step < 300 else 0.2) * wanted, 1 + 0.05 * wanted, 1.0, requests=16)
    assert sum(looked[:300]) < 70 and sum(looked[700:]) > 430


def test_a_machine_that_is_slower_now_is_no_reason() -> None:
    """Only neighbours are compared."""
    copying, looked = Copying(), []
    for step in range(1000):
        looked.append(wanted := copying.wanted)
        copying.after(wanted, 0.2 * wanted, (1 + 0.05 * wanted) * (1.0 if step % 200 < 100 else 2.0), 1.0, requests=16)
    assert sum(looked) > 880


def test_chance_of_few_requests_is_no_reason() -> None:
    """One request's copies stand or not: what sixteen lose by as much is believed sooner."""
    rested = []
    for requests in (1, 16):
        copying, numbers, rests = Copying(), random.Random(1), 0
        for _ in range(2000):
            copies = copying.wanted and numbers.random() < 0.5
            rests += not copying.wanted
            copying.after(copies, copies * numbers.choice((0.0, 0.0, 0.0, 0.7)), 1 + 0.1 * copies, 1.0, requests)
        rested.append(rests)
    assert rested[0] < 100 < rested[1] / 5
