"""Losslessness by enumeration: the outputs of the product's own loop have the target's law."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.kernels.law import can_make_law
from dspark.kernels.machine import can_compile
from dspark.speculation import loop, recalibration
from dspark.speculation.acceptance import acceptance_probability
from dspark.speculation.confidence import ConfidenceMap, Isotonic, Logistic, Platt
from dspark.speculation.draws import Draws, Purpose
from dspark.speculation.loop import Draft, DrafterState, Sample, VerifyLength
from dspark.speculation.planner import single as planner
from dspark.speculation.planner.single import EarlyStop, WhileItPays, without_a_clock
from dspark.speculation.rejection import residual, verify
from dspark.speculation.sampling import Sampling, distribution
from enumeration import (
    TOLERANCE,
    Logits,
    TableDrafter,
    after,
    assert_law,
    branches,
    measure,
    mixed,
    random_logits,
)

SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.7),
    Sampling(1.0),
    Sampling(1.0, top_k=2),
    Sampling(1.0, top_p=0.7),
    Sampling(0.7, top_k=2, top_p=0.8),
    Sampling(1.0, min_p=0.4),
]


class CertainDrafter:
    """Proposes the likeliest ids of a table with certainty: the law of a lookup."""

    def __init__(self, logits: Logits, block: int) -> None:
        self.logits, self.block = logits, block

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        tokens: list[int] = []
        rows = []
        for _ in range(self.block):
            rows.append(distribution(self.logits((*ids, *tokens)), Sampling(0.0)))
            tokens.append(int(rows[-1].argmax()))
        return Draft(tokens, torch.stack(rows))


def target_table(vocabulary: int, dtype: torch.dtype = torch.float64) -> Logits:
    return after(1, random_logits(vocabulary, "target", dtype=dtype))


def padded(logits: Logits, width: int) -> Logits:
    """The same law over more ids, of which none of the new ones is possible."""
    return lambda prefix: torch.nn.functional.pad(row := logits(prefix), (0, width - len(row)), value=-math.inf)


def drafter_of(
    kind: str, block: int, target: Logits, vocabulary: int, dtype: torch.dtype
) -> Callable[[], DrafterState]:
    noise = random_logits(vocabulary, "drafter", dtype=dtype)

    def confidence(prefix: tuple[int, ...], slot: int) -> float:
        return float(random_logits(1, "confidence")(prefix))

    if kind == "one-hot":
        return lambda: CertainDrafter(mixed(target, noise), block)
    if kind == "pruned":
        return lambda: TableDrafter(mixed(target, noise), block, [0, 2], confidence)
    return lambda: TableDrafter(mixed(target, noise), block, None, confidence)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sequential", "pruned", "one-hot"])
def test_one_round_completed_by_the_target_has_the_targets_law(kind: str, block: int, sampling: Sampling) -> None:
    target = target_table(3)
    drafter = drafter_of(kind, block, target, 3, torch.float64)
    # A greedy round is a single branch, so it takes a few of them to meet an acceptance; all their tokens count.
    rounds = 6 if sampling.greedy else 1
    tokens = 1 + rounds * (block + 1) if sampling.greedy else block + 2
    assert_law(measure(target, drafter, sampling, tokens=tokens, rounds=rounds))


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.0, top_k=2, top_p=0.9)], ids=str)
@pytest.mark.parametrize("kind", ["sequential", "pruned"])
@pytest.mark.parametrize("width", [3, 32], ids=["PyTorch", "compiled"])
def test_one_round_in_single_precision(width: int, kind: str, sampling: Sampling) -> None:
    target = padded(target_table(3, torch.float32), width)
    drafter = drafter_of(kind, 2, target, width, torch.float32)
    assert can_make_law(target((0,))[None]) == (width == 32 and can_compile())
    assert_law(measure(target, drafter, sampling, tokens=4, rounds=1), TOLERANCE[torch.float32])


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7), Sampling(1.0, top_p=0.9)], ids=str)
def test_four_tokens_end_to_end(sampling: Sampling) -> None:
    target = random_logits(2, "end to end")
    drafter = drafter_of("sequential", 2, target, 2, torch.float64)
    assert_law(measure(target, drafter, sampling, tokens=4))


def test_a_stop_id_ends_the_output_wherever_it_stands() -> None:
    target = random_logits(3, "stops")
    drafter = drafter_of("sequential", 2, target, 3, torch.float64)
    measured = measure(target, drafter, Sampling(1.0), tokens=4, stop_ids=(2,))
    assert_law(measured)
    assert {len(output) for output in measured.law} == {1, 2, 3, 4}


def keep(length: int) -> VerifyLength:
    return lambda drafted, survival: length


def early_stop(sps: list[float]) -> VerifyLength:
    """The product's planner for sps[B - 1] complete rounds a second for B tokens."""
    return EarlyStop(tuple(1 / each for each in sps))


@pytest.mark.parametrize("hook", [keep(1), keep(2), early_stop([1, 0.75, 0.55, 0.48])], ids=["1", "2", "early stop"])
@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.0, top_k=2)], ids=str)
def test_trimmed_rounds_are_lossless(hook: VerifyLength, sampling: Sampling) -> None:
    target = target_table(3)
    drafter = drafter_of("sequential", 3, target, 3, torch.float64)
    measured = measure(target, drafter, sampling, tokens=5, rounds=1, verify_length=lambda: hook)
    assert_law(measured)
    assert 0 < measured.verified < measured.drafted


@pytest.mark.parametrize(
    "calibration",
    [
        Platt((2.0, 3.0, -1.0), (0.5, -0.5, 0.5)),
        Logistic((1.0, 0.5, -1.0), (2.0, 1.0, 1.0), (-1.0, 0.0, 0.0)),
        Isotonic(((-1.0, 1.0),) * 3, ((0.2, 0.9),) * 3),
    ],
    ids=["Platt", "logistic", "isotonic"],
)
def test_rounds_trimmed_by_calibrated_confidence_are_lossless(calibration: ConfidenceMap) -> None:
    target = target_table(3)
    drafter = drafter_of("sequential", 3, target, 3, torch.float64)
    hook = early_stop([1, 0.8, 0.68, 0.6])
    plain = measure(target, drafter, Sampling(0.7), tokens=5, rounds=1, verify_length=lambda: hook)
    calibrated = measure(
        target, drafter, Sampling(0.7), tokens=5, rounds=1, verify_length=lambda: hook, calibration=calibration
    )
    assert_law(calibrated)
    assert 0 < calibrated.verified < calibrated.drafted
    assert calibrated.verified != pytest.approx(plain.verified)


def test_early_stopped_rounds_end_to_end() -> None:
    target = random_logits(2, "stopped end to end")
    drafter = drafter_of("sequential", 2, target, 2, torch.float64)
    hook = early_stop([1, 0.65, 0.55])
    measured = measure(target, drafter, Sampling(1.0), tokens=4, verify_length=lambda: hook)
    assert_law(measured)
    assert measured.verified < measured.drafted


@pytest.mark.parametrize("calibration", [None, Logistic((1.0,) * 2, (0.5,) * 2, (0.0,) * 2)], ids=["trained", "map"])
def test_confidence_tilted_by_the_requests_own_rounds_is_lossless(
    calibration: ConfidenceMap | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalibration, "_SPREAD", 4.0)
    monkeypatch.setattr(loop, "LEVEL", recalibration.Tilt(precision=0.25))
    target = random_logits(2, "tilted")
    drafter = drafter_of("sequential", 2, target, 2, torch.float64)
    hook = early_stop([1, 0.65, 0.55])
    tilted = measure(target, drafter, Sampling(1.0), tokens=5, verify_length=lambda: hook, calibration=calibration)
    assert_law(tilted)
    monkeypatch.setattr(recalibration.Tilt, "after", lambda self, *over: self)
    level = measure(target, drafter, Sampling(1.0), tokens=5, verify_length=lambda: hook, calibration=calibration)
    assert_law(level)
    assert 0 < tilted.verified < tilted.drafted and tilted.verified != pytest.approx(level.verified)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=2)], ids=str)
def test_rounds_that_draft_only_while_it_pays_are_lossless(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_CREDIT", 0.2)
    monkeypatch.setattr(planner, "_FADING", 0.5)
    target = random_logits(2, "while it pays")
    drafter = drafter_of("sequential", 1, target, 2, torch.float64)
    pays = WhileItPays((1.0, 1.5), 1.0)
    measured = measure(target, drafter, sampling, tokens=6, when=pays)
    assert_law(measured)
    assert measured.drafted < measure(target, drafter, sampling, tokens=6).drafted


@pytest.mark.parametrize("cautious", [False, True])
def test_prompt_lookup_is_lossless(cautious: bool) -> None:
    target = random_logits(2, "lookup")
    measured = measure(target, lambda: PromptLookup(3, cautious=cautious), Sampling(1.0), tokens=5)
    assert_law(measured)


def test_planned_copies_are_lossless() -> None:
    target = random_logits(2, "planned lookup")
    hook = early_stop([1, 0.65, 0.55, 0.4])
    lookup = partial(PromptLookup, 3, 3, 1, cautious=True)
    measured = measure(target, lookup, Sampling(1.0), tokens=5, verify_length=lambda: hook)
    assert_law(measured)
    assert 0 < measured.verified < measured.drafted


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6)], ids=str)
def test_all_that_plans_sampled_rounds_together_is_lossless(sampling: Sampling) -> None:
    target = random_logits(2, "without a clock")
    drafter = drafter_of("sequential", 2, target, 2, torch.float64)
    planning = without_a_clock(2, [])
    measured = measure(
        target,
        drafter,
        sampling,
        tokens=6,
        verify_length=lambda: planning.verify_length,
        when=planning.when,
        lookup=partial(PromptLookup, 2, 3, 1, cautious=True),
    )
    assert_law(measured)
    assert measured.verified < measured.drafted
    assert min(measured.by_source["drafter"], measured.by_source["lookup"]) > 0.1


def test_equation_8_is_the_probability_of_acceptance() -> None:
    target, drafter = random_logits(4, "eq 8 target")(()), random_logits(4, "eq 8 drafter")(())
    for sampling in SAMPLINGS[1:]:
        p_t, p_d = distribution(target, sampling), distribution(drafter, sampling)

        def accepted(draws: Draws, p_d: Tensor = p_d, p_t: Tensor = p_t) -> int:
            token = draws.categorical(p_d, round=1, slot=0, purpose=Purpose.DRAFT)
            return verify([token], p_d[None], torch.stack([p_t, p_t]), draws, 1).accepted

        by_enumeration = sum(p * n for p, n in branches(accepted))
        assert by_enumeration == pytest.approx(float(acceptance_probability(p_d, p_t)), abs=1e-12)
        assert by_enumeration > 0


def test_rejecting_by_rounding_alone_samples_from_the_target() -> None:
    # p_t <= p_d everywhere: a rejection is a rounding event and leaves no residual mass.
    p_t = torch.tensor([0.5, 0.5], dtype=torch.float64)
    p_d = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)

    def outcome(draws: Draws) -> tuple[int, int]:
        verdict = verify([1], p_d[None], torch.stack([p_t, p_t]), draws, 1)
        return verdict.accepted, verdict.next_token

    outcomes = {result for _, result in branches(outcome)}
    assert {(0, 0), (0, 1)} <= outcomes
    assert torch.equal(residual(p_d, p_t), p_t)
