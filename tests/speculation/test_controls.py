"""Controls: known ways to lose losslessness. Each one must be seen by the law, and its sound twin must pass.

A control breaks one piece of the product by injection; the loop around it stays the product's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark.speculation import loop, rejection
from dspark.speculation.acceptance import acceptance_probability
from dspark.speculation.loop import Draft, Sample, VerifyLength
from dspark.speculation.planner.single import EarlyStop
from dspark.speculation.sampling import Sampling, distribution
from enumeration import (
    TableDrafter,
    TableTarget,
    after,
    assert_law,
    constant_logits,
    measure,
    mixed,
    random_logits,
)

CLEAR = 0.01  # a broken law is off by at least this, seven orders above the tolerance
PLAIN = Sampling(1.0)
TARGET = after(1, random_logits(3, "control target"))
DRAFTER = mixed(TARGET, random_logits(3, "control drafter"), 0.3)
A, B = 0, 1


def block_of_two() -> TableDrafter:
    return TableDrafter(DRAFTER, 2)


def assert_caught(patch: pytest.MonkeyPatch, module: Any, name: str, broken: Callable[..., Any]) -> None:
    """The law holds, and no longer once `module.name` is broken."""
    assert_law(measure(TARGET, block_of_two, PLAIN, tokens=4, rounds=1))
    patch.setattr(module, name, broken)
    measured = measure(TARGET, block_of_two, PLAIN, tokens=4, rounds=1)
    assert measured.drafted > 0
    assert measured.accepted > 0
    assert measured.error > CLEAR


def test_acceptance_ratio_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = rejection.acceptance
    assert_caught(monkeypatch, rejection, "acceptance", lambda p_d, p_t: sound(p_t, p_d))


def test_residual_not_renormalised(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = rejection.residual

    def leftover_to_the_last_token(p_d: Tensor, p_t: Tensor) -> Tensor:
        mass = 1 - acceptance_probability(p_d, p_t)
        rest = sound(p_d, p_t) * mass
        rest[-1] += 1 - mass
        return rest

    assert_caught(monkeypatch, rejection, "residual", leftover_to_the_last_token)


def test_residual_that_is_no_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = rejection.residual
    monkeypatch.setattr(
        rejection, "residual", lambda p_d, p_t: sound(p_d, p_t) * (1 - acceptance_probability(p_d, p_t))
    )
    with pytest.raises(AssertionError, match="not a distribution"):
        measure(TARGET, block_of_two, PLAIN, tokens=4, rounds=1)


def test_bonus_drawn_from_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = loop.verify
    assert_caught(
        monkeypatch,
        loop,
        "verify",
        lambda tokens, p_d, p_t, *rest: sound(tokens, p_d, torch.cat([p_t[:-1], p_d[-1:]]), *rest),
    )


def test_target_rows_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = loop.verify
    assert_caught(
        monkeypatch, loop, "verify", lambda tokens, p_d, p_t, *rest: sound(tokens, p_d, p_t.roll(1, 0), *rest)
    )


@pytest.mark.parametrize("shift", [-1, 1])
def test_rollback_off_by_one(shift: int) -> None:
    class Misplaced(TableTarget):
        def truncate(self, length: int) -> None:
            super().truncate(min(length + shift, self.length))

    # The drafter ignores its context, so that only the target's cache is wrong.
    def settings() -> dict[str, Any]:
        return {"drafter": lambda: TableDrafter(constant_logits(0.4, 0.6), 2), "sampling": PLAIN, "tokens": 4}

    target = random_logits(2, "rollback")
    assert_law(measure(target, **settings()))
    measured = measure(target, target=Misplaced, **settings())
    assert measured.drafted > 0
    assert measured.accepted > 0
    assert measured.error > CLEAR


def test_draft_temperature_ignored() -> None:
    cold = Sampling(0.4)

    class DrawsAtTemperatureOne(TableDrafter):
        def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
            def hot(slot: int, logits: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
                index, _ = sample(slot, logits * cold.temperature, support)
                return index, distribution(logits, cold)

            return super().draft(ids, features, hot)

    assert_law(measure(TARGET, block_of_two, cold, tokens=4, rounds=1))
    measured = measure(TARGET, lambda: DrawsAtTemperatureOne(DRAFTER, 2), cold, tokens=4, rounds=1)
    assert measured.drafted > 0
    assert measured.accepted > 0
    assert measured.error > CLEAR


# What chooses the verified length. Spec 5.2's case throughout: p_t = (.7, .3), p_d = (.5, .5), c_1 = .8, and
# c_2 = .9 after x_1 = A and 0 after x_1 = B.

APP_A_TARGET = after(A, constant_logits(0.7, 0.3))


def logit(c: float) -> float:
    return math.inf if c == 1 else -math.inf if c == 0 else math.log(c / (1 - c))


def app_a_confidence(prefix: tuple[int, ...], slot: int) -> float:
    return logit(0.8) if slot == 0 else logit(0.9 if prefix[-1] == A else 0.0)


def app_a_drafter() -> TableDrafter:
    return TableDrafter(constant_logits(0.5, 0.5), 2, None, app_a_confidence)


def gains(survival: Sequence[float] | None, sps: list[float]) -> list[float]:
    """tau * SPS of every length."""
    assert survival is not None
    tau = 1 + torch.tensor([0.0, *survival], dtype=torch.float64).cumsum(0)
    return [float(t) * s for t, s in zip(tau, sps, strict=True)]


def retrospective(sps: list[float]) -> VerifyLength:
    """The search of App. A that looks at the whole block."""

    def length(drafted: int, survival: Sequence[float] | None) -> int:
        gain = gains(survival, sps)
        return gain.index(max(gain))

    return length


def early_stop(sps: list[float]) -> VerifyLength:
    return EarlyStop(tuple(1 / each for each in sps))


APP_A_SPS = [1, 0.5, 0.45]


def test_retrospective_search_is_biased_as_the_paper_says() -> None:
    measured = measure(
        APP_A_TARGET, app_a_drafter, PLAIN, tokens=4, rounds=1, verify_length=lambda: retrospective(APP_A_SPS)
    )
    assert measured.drafted > 0
    assert measured.accepted > 0
    assert measured.marginal(1, A) == pytest.approx(0.85, abs=1e-12)
    assert measured.marginal(1, B) == pytest.approx(0.15, abs=1e-12)


@pytest.mark.parametrize("sps", [APP_A_SPS, [1, 0.6, 0.45]], ids=["stops at once", "goes on after A"])
def test_early_stop_removes_the_bias(sps: list[float]) -> None:
    measured = measure(APP_A_TARGET, app_a_drafter, PLAIN, tokens=4, rounds=1, verify_length=lambda: early_stop(sps))
    assert measured.drafted > 0
    assert measured.error < 1e-12
    assert measured.marginal(1, A) == pytest.approx(0.7, abs=1e-12)
    if sps is APP_A_SPS:
        assert measured.verified == 0  # the paper's curve never pays for one draft
    else:
        assert measured.accepted > 0
        assert 1 < measured.verified < 2


def budget_of(survival: Sequence[float] | None) -> int:
    """A global rule on a whole block: two tokens where more than one is expected to survive, else none."""
    assert survival is not None
    return 2 if sum(survival) > 1 else 0


class LaggedBudget:
    """The budget of a round comes from the confidences of the round before; `first` starts it."""

    def __init__(self, first: int, rule: Callable[[Sequence[float] | None], int] = budget_of) -> None:
        self.budget, self.rule = first, rule

    def __call__(self, drafted: int, survival: Sequence[float] | None) -> int:
        budget, self.budget = self.budget, self.rule(survival)
        return budget


def test_budget_from_present_confidences() -> None:
    target = after(A, random_logits(2, "budget"))
    lagged = measure(target, app_a_drafter, PLAIN, tokens=4, verify_length=lambda: LaggedBudget(2))
    assert_law(lagged)
    present = measure(
        APP_A_TARGET,
        app_a_drafter,
        PLAIN,
        tokens=4,
        rounds=1,
        verify_length=lambda: lambda _, a: budget_of(a),
    )
    assert present.drafted > 0
    assert present.accepted > 0
    assert present.marginal(1, A) == pytest.approx(0.85, abs=1e-12)


class ReadsItsOwnToken(TableDrafter):
    """A confidence feature that reads p_d(x_k)."""

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        draft = super().draft(ids, features, sample)
        own = draft.probs.gather(1, torch.tensor(draft.tokens)[:, None]).squeeze(1)
        return Draft(draft.tokens, draft.probs, draft.support, torch.logit(own).tolist())


class ReadsTheDistribution(TableDrafter):
    """Its sound twin: the largest p_d of the slot."""

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        draft = super().draft(ids, features, sample)
        return Draft(draft.tokens, draft.probs, draft.support, torch.logit(draft.probs.amax(dim=1)).tolist())


def test_confidence_that_reads_its_own_token() -> None:
    def above_half(drafted: int, survival: Sequence[float] | None) -> int:
        assert survival is not None  # stops early: the fault is the confidence, not the walk
        return next((j for j in range(drafted) if survival[j] <= 0.5), drafted)

    def run(kind: type[TableDrafter]) -> Any:
        drafter = constant_logits(0.6, 0.4)
        target = after(A, constant_logits(0.3, 0.7))
        return measure(target, lambda: kind(drafter, 2), PLAIN, tokens=4, rounds=1, verify_length=lambda: above_half)

    assert_law(run(ReadsTheDistribution))
    biased = run(ReadsItsOwnToken)
    assert biased.drafted > 0
    assert biased.accepted > 0
    # x_1 = A (.6) is verified and accepted with .5; x_1 = B is never verified: .6 * .5 + .4 * .3.
    assert biased.marginal(1, A) == pytest.approx(0.42, abs=1e-12)


class NoiseByPosition(TableDrafter):
    """Draws each position once: the noise of a discarded draft comes back at the same position."""

    noise: dict[int, int]

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        def remembered(slot: int, logits: Tensor, support: Tensor | None) -> tuple[int, Tensor]:
            position = len(ids) + slot
            if position not in self.noise:
                self.noise[position], _ = sample(slot, logits, support)
            # p_d is the same at every prefix of this case, so the same noise is the same token.
            return self.noise[position], distribution(logits, PLAIN)

        self.noise = self.__dict__.get("noise", {})
        return super().draft(ids, features, remembered)


def test_noise_keyed_by_position_leaks_through_a_lagged_budget() -> None:
    # Round 1 verifies nothing, but its c_3 has seen x_2 and sets the budget of round 2, whose first draft
    # stands at the position of x_2. With the noise of x_2 the budget knows that draft, with fresh noise not.
    def confidence(prefix: tuple[int, ...], slot: int) -> float:
        return logit(1.0) if slot < 2 else logit(0.9 if prefix[-1] == A else 0.0)

    def rule(survival: Sequence[float] | None) -> int:
        assert survival is not None
        return 1 if len(survival) > 2 and survival[2] > 0.5 else 0

    def run(kind: type[TableDrafter]) -> Any:
        return measure(
            APP_A_TARGET,
            lambda: kind(constant_logits(0.5, 0.5), 3, None, confidence),
            PLAIN,
            tokens=4,
            rounds=2,
            verify_length=lambda: LaggedBudget(0, rule),
        )

    fresh = run(TableDrafter)
    assert_law(fresh)
    assert fresh.marginal(2, A) == pytest.approx(0.7, abs=1e-12)
    reused = run(NoiseByPosition)
    assert reused.drafted > 0
    assert reused.accepted > 0
    assert reused.marginal(2, A) == pytest.approx(0.85, abs=1e-12)


def test_the_law_check_needs_drafts() -> None:
    unverified = measure(
        TARGET, block_of_two, PLAIN, tokens=4, rounds=1, verify_length=lambda: lambda drafted, survival: 0
    )
    assert unverified.error < 1e-12
    with pytest.raises(AssertionError):
        assert_law(unverified)
