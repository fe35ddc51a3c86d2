"""Copies in steps without drafts: while they pay, and now and then to see whether they do."""

from __future__ import annotations

import pytest

from dspark.decoding.copying import Copying


def asked(gained: float, took: float, planning: dict[bool, float], steps: int) -> list[bool]:
    """In which of so many steps copies are looked for, each of which gains and takes this where it does."""
    copying, found = Copying(), []
    for _ in range(steps):
        found.append(wanted := copying.wanted)
        copying.after(gained * wanted, took * wanted, planning[wanted])
    return found


@pytest.mark.parametrize("gained, took, planning", [(3.0, 1.0, 1.0), (1.0, 0.0, 0.9)])
def test_who_gains_goes_on(gained: float, took: float, planning: float) -> None:
    assert all(asked(gained, took, {True: planning, False: 0.1}, 1000))


@pytest.mark.parametrize("gained, took, planning", [(1.0, 2.0, 0.0), (1.0, 0.5, 1.0), (0.0, 0.0, 0.3)])
def test_who_loses_rests_longer_each_time(gained: float, took: float, planning: float) -> None:
    found = asked(gained, took, {True: planning, False: 0.1}, 4000)
    assert found[:16] == [True] * 16 and found[16:48] == [False] * 32 and found[48:64] == [True] * 16
    assert sum(found[2000:]) / 2000 < 0.07


def test_who_loses_and_then_gains_is_found_out() -> None:
    copying, found = Copying(), []
    for step in range(1200):
        found.append(wanted := copying.wanted)
        copying.after((0.0 if step < 300 else 2.0) * wanted, 0.5 * wanted, 0.2)
    assert not all(found[:300]) and all(found[700:])
