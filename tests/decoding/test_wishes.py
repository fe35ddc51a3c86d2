"""What requests ask beyond sampling: biases, penalties, ends of their own, log-probabilities; exact row by row."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.modes import Mode
from dspark.decoding.request import Completion, Request
from dspark.decoding.wishes import Wishes
from dspark.foundation.errors import UserError
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.targets.session import TargetSession
from tiny import STOP, tiny_drafter, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7, 5], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11, 5, 9]]
MODES: tuple[Mode, ...] = ("plain", "dspark", "ngram")
TOKENS = 30
WISHES = [
    Wishes(bias={7: 2.0, 11: -3.0}),
    Wishes(repetition=1.6),
    Wishes(presence=0.7, frequency=0.9),
    Wishes(min_tokens=20, bias={STOP: 6.0}),
    Wishes({5: 1.0}, 1.2, 0.3, 0.4, 9),
    Wishes(frequency=-1.0),  # likes what it has said: drafts stand often
]


def run(target: Target, mode: Mode, requests: list[Request]) -> dict[str, Completion]:
    drafter = tiny_drafter(target)
    engine = Engine(target, requests, Limits(3, 256, block=8), mode, drafter)
    return {answer.request.id: answer for answer in engine.run()}


def by_hand(target: Target, request: Request) -> list[int]:
    """One token at a time, the logits changed number by number."""
    session, wishes = TargetSession(target, 128), request.wishes
    assert wishes is not None
    output: list[int] = []
    new = request.prompt_ids
    while len(output) < request.max_tokens and (not output or output[-1] not in target.stop_ids):
        logits = session.extend(new, logits=1).logits_NV[0].tolist()
        counts = Counter(output)
        for token, value in enumerate(logits):
            value += wishes.bias.get(token, 0.0)
            if token in request.prompt_ids or token in output:
                value = value / wishes.repetition if value > 0 else value * wishes.repetition
            value -= wishes.presence * (token in counts) + wishes.frequency * counts[token]
            logits[token] = -math.inf if token in target.stop_ids and len(output) < wishes.min_tokens else value
        new = [max(range(len(logits)), key=logits.__getitem__)]
        output += new
    return output


@pytest.mark.parametrize("mode", MODES)
def test_every_row_knows_the_drafts_before_it(mode: Mode) -> None:
    target = tiny_target(sharpness=2.0)
    requests = [
        Request(f"{i}/{j}", prompt, Sampling(), 0, TOKENS, wishes=wishes)
        for i, prompt in enumerate(PROMPTS)
        for j, wishes in enumerate(WISHES)
    ]
    plain = run(target, "plain", [replace(each, wishes=None) for each in requests])
    answers = run(target, mode, requests)
    for request in requests:
        assert answers[request.id].output_ids == by_hand(target, request)
    changed = sum(answers[each].output_ids != plain[each].output_ids for each in answers)
    assert changed > len(requests) / 2
    accepted = sum(round.accepted for answer in answers.values() for round in answer.rounds)
    assert accepted > 30 or mode == "plain"


def test_a_row_that_does_not_know_them_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: rows behind drafts that take these for unwritten give other texts."""
    target = tiny_target(sharpness=2.0)
    requests = [Request(f"{i}", ids, Sampling(), 0, TOKENS, wishes=WISHES[-1]) for i, ids in enumerate(PROMPTS)]
    right = Wishes.granted
    monkeypatch.setattr(
        Wishes,
        "granted",
        lambda self, rows, prompt, output, drafts, stops: torch.cat(
            [right(self, row[None], prompt, output, [], stops) for row in rows]
        ),
    )
    answers = run(target, "ngram", requests)
    assert any(answers[each.id].output_ids != by_hand(target, each) for each in requests)


def test_coupled_texts_are_plains_with_wishes_too() -> None:
    target = tiny_target(sharpness=2.0)
    requests = [
        Request(f"{i}", ids, Sampling(1.0), i, TOKENS, coupled=True, wishes=WISHES[i]) for i, ids in enumerate(PROMPTS)
    ]
    plain, drafted = (run(target, mode, requests) for mode in ("plain", "dspark"))
    assert {each: plain[each].output_ids for each in plain} == {each: drafted[each].output_ids for each in drafted}


@pytest.mark.parametrize("mode", MODES)
def test_answers_end_where_they_are_asked_to(mode: Mode) -> None:
    target = tiny_target(sharpness=2.0)
    base = [Request(f"{i}", ids, Sampling(), 0, TOKENS) for i, ids in enumerate(PROMPTS)]
    whole = {each: answer.output_ids for each, answer in run(target, "plain", base).items()}
    cases = 0
    for id_, ids in whole.items():
        if len(ids) < 8:
            continue
        request, text = base[int(id_)], target.chat.decode(ids)
        wanted = text[4:6]  # two characters, one a token
        end = text.index(wanted) + 2
        own = ids[: ids.index(ids[5]) + 1]
        answers = run(
            target,
            mode,
            [
                replace(request, id="text", stops=("no such text", wanted)),
                replace(request, id="id", stop_ids=(ids[5],)),
                replace(request, id="later", stops=(wanted,), wishes=Wishes(min_tokens=end)),
            ],
        )
        assert answers["text"].output_ids == ids[:end] and answers["text"].finish_reason == "stop"
        assert answers["id"].output_ids == own and answers["id"].finish_reason == "stop"
        assert answers["later"].output_ids[:end] == ids[:end], "what is written by then stops nothing"
        for answer in answers.values():
            assert [token for round in answer.rounds for token in round.tokens] == answer.output_ids
        cases += 1
    assert cases > 1


@pytest.mark.parametrize("mode", MODES)
def test_log_probabilities_are_the_targets_own(mode: Mode) -> None:
    target = tiny_target(sharpness=2.0)
    sampling = Sampling(0.7, top_k=5)
    requests = [
        Request(f"{i}", ids, sampling, i, TOKENS, logprobs=3, wishes=WISHES[i] if i % 2 else None)
        for i, ids in enumerate(PROMPTS)
    ]
    for answer in run(target, mode, requests).values():
        ids, prompt = answer.output_ids, answer.request.prompt_ids
        session = TargetSession(target, 128)
        logs = session.extend([*prompt, *ids[:-1]], logits=len(ids)).logits_NV.log_softmax(-1)
        assert [each.token for each in answer.logprobs] == ids
        for row, each in zip(logs, answer.logprobs, strict=True):
            assert each.logprob == pytest.approx(float(row[each.token]), abs=1e-4)
            assert [value for _, value in each.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    silent = run(target, mode, [replace(each, logprobs=None) for each in requests])
    assert all(answer.logprobs == () for answer in silent.values())


def test_wishes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="presence is nan, bias of 3 is inf; expected numbers"):
        Wishes(presence=math.nan, bias={3: math.inf})
    for repetition in (0.0, 5e-324, 101.0):
        with pytest.raises(UserError, match="repetition is .*expected 0.01 to 100"):
            Wishes(repetition=repetition)
    target = tiny_target()
    engine = Engine(target, (), Limits(1, 64))
    with pytest.raises(UserError, match=r"the ids \[64\]; the target has 0 to 63"):
        engine.submit(Request("a", [1], Sampling(), 0, 4, wishes=Wishes({64: 1.0})))
