"""Drafters that come to no numbers: nobody's answer changes, and nobody else's rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.pace import Pace
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Completion, Request, Running
from dspark.decoding.sampler import settle_finite
from dspark.decoding.single import Decoder
from dspark.drafters.drafter import Drafter
from dspark.nn.blocks import BlockTable
from dspark.nn.cache import KVCache
from dspark.speculation.cost import CostModel
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import Draft
from dspark.speculation.planner.guard import Guard
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from tiny import tiny_chain, tiny_drafter, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12]]
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12), Sampling(1.0, top_p=0.7)]
TOKENS = 30
COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.02, 0.2, 0.0, 0.0, 0.0, 0.0, 0.005, 0.01, 0.0, 0.0))
NUMBERS = (torch.nan, torch.inf)


def packed(drafter: Drafter) -> Drafter:
    drafter.pack()
    return drafter


DRAFTERS: dict[str, Callable[[Target], Drafter]] = {
    "modules": tiny_drafter,
    "program": lambda target: packed(tiny_drafter(target)),
    "pruned program": lambda target: packed(tiny_drafter(target, draft_ids=tuple(range(0, 64, 2)))),
    "chain": tiny_chain,
}


def requests_of(samplings: list[Sampling], coupled: bool = False) -> list[Request]:
    return [
        Request(f"{i} {sampling}", ids, sampling, i, TOKENS, coupled=coupled, ignore_stop=True)
        for i, ids in enumerate(PROMPTS)
        for sampling in samplings
    ]


def answers(completions: Iterable[Completion]) -> dict[str, Completion]:
    return {each.request.id: each for each in completions}


def accepted(completions: Iterable[Completion]) -> int:
    return sum(each.accepted for completion in completions for each in completion.rounds)


@pytest.mark.parametrize(("coupled", "number"), [(False, torch.nan), (True, torch.inf)], ids=["free", "coupled"])
@pytest.mark.parametrize("kind", ["modules", "program", "pruned program"])
def test_slots_behind_some_tokens_are_broken_and_rounds_are_the_reference_loops(
    kind: str, number: float, coupled: bool
) -> None:
    """What each token says of the next one is a table: some of its rows are no numbers any more."""
    target = tiny_target(sharpness=2.0)
    drafter = DRAFTERS[kind](target)
    drafter.markov_head.markov_w1.weight.data[::3, 0] = number
    requests = requests_of(SAMPLINGS, coupled)
    engine = Engine(target, requests, Limits(8, 1024), "dspark", drafter, lookup=False)
    with pytest.warns(UserWarning, match="a draft came to NaN or infinity"):
        found = answers(engine.run())
    decoder = Decoder(target, drafter, lookup=False)
    for request in requests:
        assert list(found[request.id].rounds) == list(decoder.reference(request, "dspark"))
        if coupled or request.sampling.greedy:
            assert found[request.id].output_ids == Decoder(target).answer(request, "plain").output_ids
    rounds = [each for answer in found.values() for each in answer.rounds]
    assert accepted(found.values()) > 0 and engine.broken_drafts > 10
    assert {each.verified for each in rounds if each.drafted == 4} >= {0, 1, 4}


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("mended", [True, False], ids=["mended", "control: not mended"])
def test_who_lost_its_features_drafts_on_and_its_neighbours_never_knew(
    kind: str, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = DRAFTERS[kind](target)
    requests = requests_of(SAMPLINGS[:2])
    expected = answers(Engine(target, requests, Limits(8, 1024), "dspark", drafter, lookup=False).run())
    engine = Engine(target, requests, Limits(8, 1024), "dspark", drafter, lookup=False)
    room, ill = engine._drafter, requests[0]
    assert room is not None
    extend, took = room.extend, []

    def poisoned(features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, *more: Any) -> None:
        row = next((each for each in engine.admission.running if each.request is ill), None)
        if row is not None and len(row.rounds) == 4 and not took:
            own = BlockTable(row.table.blocks).rows(row.table.length, engine.pool.size)
            mine = torch.isin(rows_T, torch.tensor(own))
            took.append(int(mine.sum()))
            features_TF = features_TF.masked_fill(mine[:, None], torch.nan)
        extend(features_TF, positions_T, rows_T, *more)

    monkeypatch.setattr(room, "extend", poisoned)
    if not mended:
        monkeypatch.setattr(KVCache, "mend", lambda self, blocks: None)
    with pytest.warns(UserWarning, match="a draft came to NaN or infinity"):
        found = answers(engine.run())
    assert took and took[0] > 0
    for request in requests[1:]:
        assert found[request.id] == expected[request.id]
    mine = found[ill.id]
    assert mine.output_ids == expected[ill.id].output_ids
    behind = sum(each.verified for each in mine.rounds[6:])
    assert (behind > 0 and engine.broken_drafts == 1) if mended else (behind == 0 and engine.broken_drafts > 5)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_drafter_that_breaks_altogether_costs_speed_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the answers, under a scheduler, which then lets nobody draft."""
    monkeypatch.setattr(CostModel, "refined", lambda self, taken: self)
    monkeypatch.setattr(Pace, "after", lambda self, drafting, over_foretold: None)
    monkeypatch.setattr(Pace, "planned", lambda self, drafting, seconds, steps=1: None)
    target = tiny_target(sharpness=2.0)
    drafter = DRAFTERS[kind](target)
    requests = [replace(each, max_tokens=4 * TOKENS) for each in requests_of([Sampling()])]
    settings = Adaptive(COSTS, guard=Guard(credit=0.5, doubt=0.0))
    planner = Together(settings, 4, drafter.config.block_size)
    engine = Engine(target, requests, Limits(4, 1024), "dspark", drafter, lookup=False, planner=planner)
    over = planner.over

    def breaks(*what: Any) -> None:
        if planner.ledger.accepted:
            drafter.norm.weight.data.fill_(torch.nan)
        over(*what)

    monkeypatch.setattr(planner, "over", breaks)
    with pytest.warns(UserWarning, match="a draft came to NaN or infinity"):
        found = answers(engine.run())
    for request in requests:
        assert found[request.id].output_ids == Decoder(target).answer(request, "plain").output_ids
    assert accepted(found.values()) > 0 and engine.broken_drafts > 0
    assert planner.ledger.resting > 2 and planner._memory.rests


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("width", [64, 60], ids=["compiled", "not compiled"])
@pytest.mark.parametrize("number", [*NUMBERS, -torch.inf], ids=str)
def test_a_request_whose_target_gives_no_numbers_falls_alone(number: float, width: int, sampling: Sampling) -> None:
    rows = [Running(Request(f"{i}", [1], sampling, i, 8), SeededDraws(i), 8) for i in range(3)]
    logits = torch.randn(6, width, generator=torch.Generator().manual_seed(3))
    drafts, lengths = [Draft([4]), Draft([5, 6]), Draft([])], [1, 2, 0]
    expected = settle_finite(logits, rows, drafts, lengths)
    assert None not in expected
    bad = logits.clone()
    bad[2, slice(None) if number < 0 else 7] = number
    assert settle_finite(bad, rows, drafts, lengths) == [expected[0], None, expected[2]]
