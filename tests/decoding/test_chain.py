"""Autoregressive drafters in the core: the reference loop's rounds, plain decoding's texts, rows that stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive, Together, lengths_of
from dspark.decoding.request import Completion, Request
from dspark.decoding.single import Decoder
from dspark.decoding.work import Work
from dspark.drafters.chain import ChainDrafter
from dspark.drafters.state import DSparkState
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.cost import CostModel
from dspark.speculation.planner.single import EarlyStop, Planning, WhileItPays
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from tiny import tiny_chain, tiny_target

PROMPTS = [[1, 5, 9, 13], [7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11], [1, 20, 21, 22, 23], [1] * 21]
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12), Sampling(1.0, top_p=0.7), Sampling(1.0, min_p=0.2)]
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["modules", "packed"])
KINDS = pytest.mark.parametrize("kind", ["eagle3", "mtp"])


def pair(kind: str, packed: bool = False, **changes: Any) -> tuple[Target, ChainDrafter]:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_chain(target, kind, **changes)
    if packed:
        drafter.pack()
        assert drafter.packed_head is not None
    return target, drafter


def requests_of(samplings: Sequence[Sampling], **more: Any) -> list[Request]:
    return [Request(f"{i}", prompt, samplings[i % len(samplings)], i, 40, **more) for i, prompt in enumerate(PROMPTS)]


def alone(pair: tuple[Target, ChainDrafter], requests: list[Request], **more: Any) -> dict[str, list[Round]]:
    decoder = Decoder(*pair, **more)
    return {r.id: list(decoder.reference(r, "dspark")) for r in requests}


def rounds_of(completions: Sequence[Completion]) -> dict[str, list[Round]]:
    return {c.request.id: list(c.rounds) for c in completions}


def tally_of(rounds: dict[str, list[Round]]) -> RoundTally:
    tally = RoundTally()
    tally.extend(each for some in rounds.values() for each in some)
    return tally


@PACKED
@KINDS
@pytest.mark.parametrize("draft_ids", [None, tuple(range(0, 64, 2))], ids=["full", "pruned"])
def test_every_answer_is_the_reference_loops(kind: str, draft_ids: tuple[int, ...] | None, packed: bool) -> None:
    both = pair(kind, packed, draft_ids=draft_ids)
    requests = requests_of(SAMPLINGS)
    plan = Planning(EarlyStop((1.0, 1.2, 1.4, 1.6, 1.8)), WhileItPays((1.2, 1.5, 1.8, 2.1, 2.4), 1.0))
    for limits, more in (
        (Limits(6, 512), {"lookup": False}),
        (Limits(4, 512, step_tokens=7, block=4), {}),
        (Limits(6, 120, block=3), {"greedy": plan, "sampled": plan}),
    ):
        expected = alone(both, requests, **more)
        assert rounds_of(list(Engine(both[0], requests, limits, "dspark", both[1], **more).run())) == expected
        tally = tally_of(expected)
        assert 0 < tally.accepted < tally.drafted


@PACKED
@KINDS
def test_greedy_and_coupled_texts_are_plain_decodings(kind: str, packed: bool) -> None:
    target, drafter = pair(kind, packed)
    for requests in (requests_of([Sampling()]), requests_of([Sampling(1.0)], coupled=True)):
        plain = {c.request.id: c.output_ids for c in Engine(target, requests, Limits(6, 512)).run()}
        found = list(Engine(target, requests, Limits(6, 512), "dspark", drafter, lookup=False).run())
        assert {c.request.id: c.output_ids for c in found} == plain
        tally = tally_of(rounds_of(found))
        assert 0 < tally.accepted < tally.drafted


@KINDS
def test_preempted_requests_go_on_as_if_nothing_had_happened(kind: str) -> None:
    both, requests = pair(kind), requests_of(SAMPLINGS)
    engine = Engine(both[0], requests, Limits(6, 110, block=2), "dspark", both[1])
    assert rounds_of(list(engine.run())) == alone(both, requests)
    assert engine.admission.preemptions > 2


@KINDS
def test_equal_beginnings_share_no_rows(kind: str) -> None:
    """The last row of a block knows the token behind it, which another text may not have."""
    both = pair(kind)
    beginning = [1, *range(3, 26)]
    requests = [Request(f"{i}", [*beginning, 30 + i, 5], Sampling(), i, 30) for i in range(3)]
    engine = Engine(both[0], requests, Limits(1, 512, block=4), "dspark", both[1], lookup=False)
    assert rounds_of(list(engine.run())) == alone(both, requests, lookup=False)
    assert not engine.pool.find(requests[0].prompt_ids).blocks


@KINDS
def test_control_pairs_with_other_tokens_draft_otherwise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both, requests = pair(kind), requests_of([Sampling()])
    expected = alone(both, requests, lookup=False)
    monkeypatch.setattr(Work, "behind", lambda self, count: [0] * count)
    found = list(Engine(both[0], requests, Limits(6, 512), "dspark", both[1], lookup=False).run())
    assert rounds_of(found) != expected
    texts = {name: [token for r in rounds for token in r.tokens] for name, rounds in expected.items()}
    assert {c.request.id: c.output_ids for c in found} == texts, "a bad draft never changes a text"


@KINDS
def test_a_context_that_grows_equals_one_computed_at_once(kind: str) -> None:
    _, drafter = pair(kind)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 64, (701,), generator=generator).tolist()
    taps = torch.randn(700, drafter.config.taps_width, generator=generator)
    seen: list[torch.Tensor] = []

    def sample(slot: int, logits: torch.Tensor, support: torch.Tensor | None) -> tuple[int, torch.Tensor]:
        seen.append(logits)
        return (7 * slot + 3) % 64, logits.softmax(-1)

    state, done = DSparkState(drafter), 0
    while done < 700:
        end = min(700, done + [201, 1, 5, 2, 97, 4][done % 6])
        state.draft(ids[: end + 1], taps[done:end], sample)
        DSparkState(drafter).draft(ids[: end + 1], taps[:end], sample)
        grown, once = torch.stack(seen).chunk(2)
        torch.testing.assert_close(grown, once, rtol=1e-5, atol=1e-5)
        seen.clear()
        done = end
    assert state.length == 700


def test_mode_mtp1_is_one_draft_of_an_mtp_1_drafter() -> None:
    target, drafter = pair("mtp")
    requests = requests_of(SAMPLINGS)
    block, kind = drafter.config.block_size, drafter.config.kind
    engines = [
        Speculation.named(name, block, kind).engine(target, drafter, requests, Limits(6, 512))
        for name in ("mtp1", "fixed1")
    ]
    found, expected = (rounds_of(list(engine.run())) for engine in engines)
    assert found == expected == alone((target, drafter), requests, lookup=False)
    tally = tally_of(found)
    assert 0 < tally.accepted < tally.drafted
    assert {r.drafted for rounds in found.values() for r in rounds} == {0, 1}
    with pytest.raises(UserError, match="an MTP-1 checkpoint, and the drafter is of kind eagle3"):
        Speculation.named("mtp1", 1).engine(*pair("eagle3"), requests, Limits(6, 512))


@KINDS
def test_steps_planned_together_keep_greedy_and_coupled_texts(kind: str) -> None:
    target, drafter = pair(kind)
    block = drafter.config.block_size
    costs = CostModel((1, 8, 32), (1, 8), (1.0, 0.2, 2.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.0, 0.0))
    requests = requests_of([Sampling(), Sampling(1.0)], coupled=True)
    plain = {c.request.id: c.output_ids for c in Engine(target, requests, Limits(6, 512)).run()}
    planner = Together(Adaptive(costs, guard=None, lengths=lengths_of(block)), 6, block)
    found = list(Engine(target, requests, Limits(6, 512), "dspark", drafter, planner=planner).run())
    assert {c.request.id: c.output_ids for c in found} == plain
    tally = tally_of(rounds_of(found))
    assert 0 < tally.accepted < tally.drafted
