"""Learning from rounds that are over: a wrong map is left behind in either direction, in a loop with its own plans."""

from __future__ import annotations

import numpy as np
import pytest

from dspark.speculation.confidence import Logistic, sigmoid
from dspark.speculation.recalibration import LEVEL, Recalibration, explores

BLOCK = 4
TRUTH = Logistic((0.4, 0.5, 0.6, 0.7), (0.8, 0.9, 1.0, 1.1), (0.3, 0.0, 0.0, -0.2))
WRONG = {
    "too sure": Logistic((0.2,) * BLOCK, (0.0,) * BLOCK, (5.0,) * BLOCK),
    "too doubtful": Logistic((0.5,) * BLOCK, (0.2,) * BLOCK, (-4.0,) * BLOCK),
    "upside down": Logistic((-0.5,) * BLOCK, (-0.2,) * BLOCK, (0.0,) * BLOCK),
}
AS_TRAINED = Logistic((1.0,) * BLOCK, (0.0,) * BLOCK, (0.0,) * BLOCK)
AT, PEAKS = (
    each.reshape(-1, 1).repeat(BLOCK, axis=1) for each in np.meshgrid(np.linspace(-1.5, 2.5, 5), np.linspace(-1, 3, 5))
)


def served(start: Logistic, steps: int, *, exploring: bool = True, requests: int = 4) -> Recalibration:
    """Requests are served: what is believed plans what is verified, which decides what can be learned."""
    numbers, learned = np.random.default_rng(0), Recalibration.begin(start)
    for step in range(steps):
        logits, peaks = numbers.normal(0.5, 1.5, (2, requests, BLOCK))
        survival = learned.map.conditional(logits, peaks).cumprod(axis=1)
        verified = (survival > 0.4).sum(axis=1)
        if exploring:
            verified[[explores(step, seed, 16) for seed in range(requests)]] = BLOCK
        stands = numbers.random((requests, BLOCK)) < TRUTH.conditional(logits, peaks)
        accepted = np.minimum(stands.cumprod(axis=1).sum(axis=1), verified)
        learned = learned.after(logits, peaks, verified, accepted)
    return learned


def apart(learned: Recalibration) -> float:
    return float(np.abs(learned.map.conditional(AT, PEAKS) - TRUTH.conditional(AT, PEAKS)).mean(axis=0).max())


@pytest.mark.parametrize("start", WRONG.values(), ids=WRONG)
def test_a_wrong_map_is_left_behind(start: Logistic) -> None:
    assert apart(Recalibration.begin(start)) > 0.3
    assert apart(served(start, 4000)) < 0.08


def test_control_without_exploring_doubt_is_never_refuted() -> None:
    assert apart(served(WRONG["too doubtful"], 4000, exploring=False)) > 0.3


def test_a_right_map_stays_right() -> None:
    assert apart(served(TRUTH, 2000)) < 0.08


def test_a_change_of_texts_is_followed() -> None:
    learned, numbers = Recalibration.begin(AS_TRAINED), np.random.default_rng(0)
    for offset in (2.0, -2.0):
        for _ in range(1500):
            logits = numbers.normal(0, 1, (4, BLOCK))
            stands = numbers.random((4, BLOCK)) < sigmoid(logits + offset)
            accepted = stands.cumprod(axis=1).sum(axis=1)
            learned = learned.after(logits, np.zeros((4, BLOCK)), np.full(4, BLOCK), accepted)
        assert learned.map.offsets[0] == pytest.approx(offset, abs=0.4)


def test_what_was_not_verified_teaches_nothing() -> None:
    start = Recalibration.begin(AS_TRAINED)
    none = np.zeros(3, dtype=int)
    assert start.after(*np.full((2, 3, BLOCK), 9.0), none, none) is start
    logits = np.array([[1.0, 2.0, np.nan, np.nan]])
    learned = start.after(logits, logits, np.array([2]), np.array([0]))
    assert learned.weights[0].tolist() != start.weights[0].tolist()
    assert (learned.weights[1:] == start.weights[1:]).all() and (learned.curvature[1:] == start.curvature[1:]).all()
    assert learned.map.conditional(*np.ones((2, 1)))[0] < AS_TRAINED.conditional(*np.ones((2, 1)))[0]


def test_a_request_of_another_kind_is_soon_seen_for_what_it_is() -> None:
    numbers, believed = np.random.default_rng(0), np.array([0.8, 0.75, 0.7, 0.7])
    for shift in (-1.5, 0.0, 1.0):
        truth = sigmoid(np.log(believed / (1 - believed)) + shift)
        errors = []
        for _ in range(200):
            tilt = LEVEL
            for _ in range(40):
                accepted = int((numbers.random(BLOCK) < truth).cumprod().sum())
                tilt = tilt.after(believed.tolist(), min(BLOCK, accepted + 1), accepted)
            errors.append(np.abs(np.array(tilt.tilted(believed.tolist())) - truth).mean())
        untilted = np.abs(believed - truth).mean()
        assert np.mean(errors) < max(0.06, 0.4 * untilted)


def test_a_tilt_learns_of_what_was_verified_alone_and_keeps_the_order() -> None:
    believed = [0.9, 0.5, 0.5, 0.5]
    assert LEVEL.after(believed, 0, 0) is LEVEL
    np.testing.assert_allclose(LEVEL.tilted(believed), believed)
    # Of four drafts only the first was verified: what the others were believed to be makes no difference.
    others = [0.9, 0.1, 0.2, 0.99]
    assert LEVEL.after(believed, 1, 1) == LEVEL.after(others, 1, 1) != LEVEL
    assert LEVEL.after(believed, 1, 0).log_odds < 0 < LEVEL.after(believed, 4, 4).log_odds
    rising = np.linspace(0.0, 1.0, 11)
    for tilt in (LEVEL.after(believed, 1, 0), LEVEL.after(believed, 4, 4)):
        c = np.array(tilt.tilted(rising.tolist()))
        assert (np.diff(c) > 0).all() and ((c > 0) & (c < 1)).all()


def test_rounds_explore_by_their_number_alone() -> None:
    for seed in (0, 1, 12345):
        rounds = [r for r in range(640) if explores(r, seed)]
        assert len(rounds) == 20 and len({r % 32 for r in rounds}) == 1
