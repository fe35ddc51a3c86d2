"""Requests that choose their drafts beside others that leave it to a planner: nobody's text knows of it."""

from __future__ import annotations

from itertools import accumulate

import pytest

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive
from dspark.decoding.request import Completion, Request
from dspark.decoding.single import Decoder
from dspark.speculation.cost import CostModel
from dspark.speculation.sampling import Sampling
from tiny import tiny_drafter, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11], [1] * 21]
TOKENS = 24
CHOICES = (None, 0, 1, 3, 4)
COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.02, 0.2, 0.0, 0.0, 0.0, 0.0, 0.005, 0.01, 0.0, 0.0))


def answered(mode: str, sampling: Sampling = Sampling()) -> tuple[Engine, dict[str, Completion]]:  # noqa: B008
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    speculation = Speculation.named(mode, 4)
    requests = [
        Request(f"{i} {drafts}", prompt, sampling, i, TOKENS, drafts=drafts)
        for i, prompt in enumerate(PROMPTS)
        for drafts in CHOICES
    ]
    planner = speculation.choosing(Adaptive(COSTS), 4, 4)
    engine = speculation.engine(target, drafter, requests, Limits(4, 400, block=8), planner)
    return engine, {each.request.id: each for each in engine.run()}


@pytest.mark.parametrize("mode", ["off", "fixed2", "ngram", "adaptive"])
def test_greedy_texts_are_the_same_and_everybody_drafts_as_asked(mode: str) -> None:
    engine, answers = answered(mode)
    decoder = Decoder(engine.target)
    assert len(answers) == len(PROMPTS) * len(CHOICES)
    for answer in answers.values():
        assert answer.output_ids == decoder.answer(answer.request, "plain").output_ids
        if answer.request.drafts is not None:
            written = accumulate((len(each.tokens) for each in answer.rounds), initial=0)
            room = [TOKENS - before for before in written]
            assert all(
                each.verified == min(each.drafted, left - 1) for each, left in zip(answer.rounds, room, strict=False)
            )
    drafters_there = mode in ("fixed2", "adaptive")
    for drafts in CHOICES[1:]:
        mine = [each for answer in answers.values() if answer.request.drafts == drafts for each in answer.rounds]
        assert {each.drafted for each in mine} <= {0, drafts}
        assert max(each.drafted for each in mine) == (drafts if drafters_there else 0)
    open_ = [each for answer in answers.values() if answer.request.drafts is None for each in answer.rounds]
    assert (sum(each.drafted for each in open_) > 0) == (mode != "off")


def test_some_drafts_are_accepted_of_both_kinds() -> None:
    _, answers = answered("adaptive")
    for drafts in (None, 3, 4):
        mine = [each for answer in answers.values() if answer.request.drafts == drafts for each in answer.rounds]
        assert sum(each.accepted for each in mine) > 0


def test_the_planner_hears_of_its_own_rounds_alone() -> None:
    engine, answers = answered("adaptive")
    own = sum(each.index > 0 for a in answers.values() if a.request.drafts is None for each in a.rounds)
    assert engine.planner.own.ledger.rounds == own  # type: ignore[attr-defined]
