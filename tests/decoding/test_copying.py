"""Copies in steps without drafts: while they pay, and now and then to see whether they do."""

from __future__ import annotations

import random

import pytest

from dspark.decoding.copying import Copying


def asked(gained: float, dearer: float, steps: int, noise: float = 0.0) -> list[bool]:
    """In which of so many steps copies are looked for, each of which gains so much and is so much dearer then."""
    copying, found, numbers = Copying(), [], random.Random(0)
    for _ in range(steps):
        found.append(wanted := copying.wanted)
        copying.after(gained * wanted, (1 + dearer * wanted) * numbers.lognormvariate(0, noise))
    return found


@pytest.mark.parametrize("gained, dearer", [(0.2, 0.1), (0.1, 0.0)])
def test_who_gains_goes_on(gained: float, dearer: float) -> None:
    found = asked(gained, dearer, 1000)
    assert not any(found[:8]) and sum(found[8:]) / 992 > 0.88, "with a look at steps without, now and then"
    assert sum(asked(gained, dearer, 1000, noise=0.02)) > 800


@pytest.mark.parametrize("gained, dearer", [(0.08, 0.15), (0.0, 0.05)])
def test_who_loses_rests_longer_each_time(gained: float, dearer: float) -> None:
    found = asked(gained, dearer, 4000)
    assert found[8:24] == [True] * 16 and found[24:56] == [False] * 32 and found[56:72] == [True] * 16
    assert sum(found[2000:]) / 2000 < 0.07
    assert sum(asked(gained, dearer, 4000, noise=0.02)[2000:]) / 2000 < 0.2


def test_who_loses_and_then_gains_is_found_out() -> None:
    copying, found = Copying(), []
    for step in range(1200):
        found.append(wanted := copying.wanted)
        copying.after((0.0 if step < 300 else 0.2) * wanted, 1 + 0.05 * wanted)
    assert sum(found[:300]) < 70 and sum(found[700:]) > 430


def test_a_machine_that_is_slower_now_is_no_reason() -> None:
    """What steps without copies take is looked at again."""
    copying, found = Copying(), []
    for step in range(1000):
        found.append(wanted := copying.wanted)
        copying.after(0.2 * wanted, (1 + 0.05 * wanted) * (1.0 if step < 200 else 1.5))
    assert sum(found[600:]) > 340
