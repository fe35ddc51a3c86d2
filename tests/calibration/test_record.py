"""Recording: what the core decodes is what is recorded, and the oracle is the probability of acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from dspark.calibration.choose import (
    Split,
    best_kind,
    confidence_of,
    constant_survival,
    scores_of,
    survival_through,
    tilted,
)
from dspark.calibration.outcomes import Outcomes
from dspark.calibration.record import Recorded, Recorder, record
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.decoding.work import Work
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.confidence import sigmoid, untouched
from dspark.speculation.planner.single import Planning
from dspark.speculation.rejection import Verdict
from dspark.speculation.sampling import Sampling
from tiny import tiny_drafter, tiny_target

LIMITS = Limits(6, 1024)


def requests_of(sampling: Sampling, count: int = 24, **more: bool) -> list[Request]:
    return [Request(f"{i}", [1, 5 + i, 9, 3 + i % 7], sampling, i, 60, **more) for i in range(count)]


@pytest.mark.parametrize("packed", [False, True], ids=["modules", "compiled"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12)], ids=str)
@pytest.mark.parametrize("draft_ids", [None, tuple(range(0, 64, 2))], ids=["full", "pruned"])
def test_what_is_recorded_is_what_was_decoded(
    sampling: Sampling, draft_ids: tuple[int, ...] | None, packed: bool
) -> None:
    target = tiny_target(sharpness=1.5)
    drafter = tiny_drafter(target, draft_ids=draft_ids)
    if packed:
        drafter.pack()
    heard: list[int] = []
    requests = requests_of(sampling, ignore_stop=True)
    recorded = record(target, drafter, requests, LIMITS, heard.append)
    tally = RoundTally()
    for answer in Engine(target, requests, LIMITS, "dspark", drafter, lookup=False).run():
        tally.extend(r for r in answer.rounds[1:] if r.verified == 4)
    assert heard == list(range(1, 25)) and tally.accepted > 0
    outcomes = recorded.outcomes
    assert len(outcomes) == tally.rounds and set(recorded.prompt) <= set(range(24))
    # At the end of an answer a round's tokens are cut, and the tally counts what is left of them.
    assert 0 <= outcomes.accepted.sum() - tally.accepted <= 24 * 4
    seen = outcomes.observed
    expected, happened = recorded.oracle[seen].mean(), outcomes.stood[seen].mean()
    assert np.isfinite(outcomes.logits).all() and ((recorded.oracle >= 0) & (recorded.oracle <= 1 + 1e-6)).all()
    if sampling.greedy:
        assert (recorded.oracle[seen] == outcomes.stood[seen]).all()
    else:
        assert 0 < expected < 1
        assert happened == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / seen.sum()))


def test_halves_share_no_prompt() -> None:
    target = tiny_target(sharpness=1.5)
    recorded = record(target, tiny_drafter(target), requests_of(Sampling()), LIMITS, lambda _: None)
    for split in (Split.of(recorded, 24, {}), Split.of(recorded, 20, {"a": 3, "b": 1})):
        fitted, judging = split.fitted, split.judging
        assert len(fitted) + len(judging) == len(recorded) and not set(fitted.prompt) & set(judging.prompt)
    assert set(fitted.prompt) <= set(range(20)) and set(recorded.prompt[split.named["b"]]) == {23}
    assert (split.named["a"] | split.named["b"]).sum() == len(judging)
    with pytest.raises(UserError, match="no whole round belongs to the prompts that judge"):
        Split.of(recorded, 24, {"none": 1})


def test_blocks_that_hold_a_stop_id_are_left_out_whatever_became_of_them() -> None:
    target = tiny_target(sharpness=1.5)
    drafter, stops, drafts = tiny_drafter(target), frozenset(target.stop_ids), []
    recorder = Recorder(4, stops, {f"{i}": i for i in range(24)})

    def observe(work: Work, verdict: Verdict, logits_nV: Tensor) -> None:
        recorder(work, verdict, logits_nV)
        if work.length == 4:
            drafts.append((bool(stops & {*work.draft.tokens}), verdict.accepted))

    list(Engine(target, requests_of(Sampling(1.0)), LIMITS, "dspark", drafter, lookup=False, observe=observe).run())
    assert [n for stopped, n in drafts if not stopped] == recorder.recorded().outcomes.accepted.tolist()
    assert {n > 0 for stopped, n in drafts if stopped} == {False, True}, "a rule by what was accepted would differ"


def test_of_coupled_drafts_nobody_knows_the_chance() -> None:
    target = tiny_target(sharpness=1.5)
    recorded = record(target, tiny_drafter(target), requests_of(Sampling(1.0), coupled=True), LIMITS, lambda _: None)
    found = confidence_of(recorded, None)
    assert np.isnan(recorded.oracle).all() and np.isnan(found["oracle_auc"]).all() and found["brier"][0] > 0


def test_survival_is_tilted_as_the_loop_tilts_it() -> None:
    target = tiny_target(sharpness=1.5)
    drafter, seen = tiny_drafter(target), []

    def heard(drafted: int, survival: Sequence[float] | None) -> int:
        seen.append(survival)
        return drafted

    request = Request("0", [1, 5, 9, 3], Sampling(1.0), 0, 60, ignore_stop=True)
    decoder = Decoder(target, drafter, sampled=Planning(verify_length=heard), lookup=False)
    rounds = list(decoder.reference(request, "dspark"))
    recorded = record(target, drafter, [request], LIMITS, lambda _: None)
    whole = [a for a, r in zip(seen, rounds[1:], strict=False) if r.verified == 4]
    assert len(whole) == len(recorded) > 5
    np.testing.assert_allclose(tilted(untouched(4), recorded), whole, rtol=1e-5)


def test_nothing_to_record_is_said() -> None:
    target = tiny_target()
    with pytest.raises(UserError, match="no round verified a whole block"):
        record(target, tiny_drafter(target), [Request("0", [1], Sampling(), 0, 3)], LIMITS, lambda _: None)


@pytest.mark.parametrize("packed", [False, True], ids=["modules", "compiled"])
def test_without_a_confidence_head_the_drafters_own_laws_tell(packed: bool) -> None:
    target = tiny_target(sharpness=1.5)
    blind = tiny_drafter(target, enable_confidence_head=False)
    if packed:
        blind.pack()
    outcomes = record(target, blind, requests_of(Sampling()), LIMITS, lambda _: None).outcomes
    assert len(outcomes) > 50 and (outcomes.logits == outcomes.peaks).all() and outcomes.logits.std() > 0


def test_the_best_map_is_the_one_that_is_right_about_others() -> None:
    numbers = np.random.default_rng(0)

    def recorded(truth: object, count: int = 8000) -> Recorded:
        logits = numbers.normal(0, 2, (count, 3))
        stands = numbers.random((count, 3)) < truth(logits)  # type: ignore[operator]
        accepted = stands.cumprod(axis=1).sum(axis=1)
        return Recorded(
            Outcomes(logits, 0 * logits, np.full(count, 3), accepted), logits, numbers.integers(0, 100, count)
        )

    assert best_kind(recorded(lambda x: np.where(x > 0, 0.95, 0.3))) == "isotonic"
    assert best_kind(recorded(lambda x: sigmoid(0.5 * x + 1.0), 400)) == "platt"


def test_recorded_rounds_are_kept_whole_or_refused(tmp_path: Path) -> None:
    target = tiny_target(sharpness=1.5)
    recorded = record(target, tiny_drafter(target), requests_of(Sampling(1.0)), LIMITS, lambda _: None)
    judged = recorded.prompt % 2 == 1
    recorded.save(tmp_path / "rounds.npz", judged)
    again, judges = Recorded.load(tmp_path / "rounds.npz")
    assert (judges == judged).all() and (again.oracle == recorded.oracle).all()
    assert (again.outcomes.peaks == recorded.outcomes.peaks).all() and (again.prompt == recorded.prompt).all()
    (tmp_path / "broken.npz").write_bytes((tmp_path / "rounds.npz").read_bytes()[:-9])
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", recorded.oracle)
    Recorded(recorded.outcomes, recorded.oracle[1:], recorded.prompt).save(tmp_path / "uneven.npz", judged)
    for name in ("broken.npz", "nowhere.npz", "empty.npz", "one.npy", "uneven.npz"):
        with pytest.raises(UserError, match="holds no recorded rounds"):
            Recorded.load(tmp_path / name)


def test_scores_are_of_prefixes() -> None:
    logits = np.array([[20.0, 20.0], [20.0, -20.0], [-20.0, 20.0], [20.0, 20.0]])
    outcomes = Outcomes(logits, logits, np.full(4, 2), np.array([2, 1, 0, 2]))
    first, second = scores_of(survival_through(untouched(2), outcomes), outcomes)
    assert first.brier < 1e-9 and second.brier < 1e-9 and second.auc == 1.0
    constant = scores_of(constant_survival(outcomes, 4), outcomes)
    assert [each.brier for each in constant] == pytest.approx([0.75 * 0.25, 0.25])
