"""Many requests at once: every answer, round for round, is the reference loop's for that request alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.modes import Mode
from dspark.decoding.request import Completion, Request
from dspark.decoding.single import Decoder
from dspark.drafters.blocks import DrafterBlocks
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.confidence import Calibrations, Platt
from dspark.speculation.planner.single import EarlyStop, Planning, WhileItPays, without_a_clock
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from tiny import tiny_drafter, tiny_llama, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11], [1, 20, 21, 22, 23], [1] * 21]
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.8, top_k=12), Sampling(1.0, top_p=0.7), Sampling(1.0, min_p=0.2)]
MODES: tuple[Mode, ...] = ("plain", "dspark", "ngram")
TOKENS = 40
DOUBTS = Calibrations({s: Platt((1.0,) * 4, (-0.5 - i,) * 4) for i, s in enumerate((Sampling(), Sampling(1.0)))})
COUNTED = Calibrations(DOUBTS.maps, {Sampling(1.0): (0.5, 0.3, 0.2, 0.1), Sampling(0.7): (0.9, 0.8, 0.7, 0.6)})


def requests_of(samplings: Sequence[Sampling]) -> list[Request]:
    return [
        Request(f"{i}", prompt, samplings[i % len(samplings)], seed=i, max_tokens=TOKENS)
        for i, prompt in enumerate(PROMPTS)
    ]


def alone(
    target: Target, drafter: DSparkDrafter, mode: Mode, requests: list[Request], **more: Any
) -> dict[str, list[Round]]:
    decoder = Decoder(target, drafter, **more)
    return {r.id: list(decoder.reference(r, mode)) for r in requests}


def rounds_of(completions: Sequence[Completion]) -> dict[str, list[Round]]:
    return {c.request.id: list(c.rounds) for c in completions}


def text_of(rounds: Sequence[Round]) -> list[int]:
    return [token for each in rounds for token in each.tokens]


HEADS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "gated": {"markov_head_type": "gated", "markov_rank": 32},
    "rnn": {"markov_head_type": "rnn", "markov_rank": 32},
    "narrow rnn": {"markov_head_type": "rnn", "markov_rank": 5},  # no whole vectors, so drawn slot by slot
    "none": {"markov_rank": 0},
}
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["modules", "compiled"])


def drafter_of(target: Target, packed: bool, **changes: Any) -> DSparkDrafter:
    drafter = tiny_drafter(target, **changes)
    if packed:
        drafter.pack()
        assert drafter.compiled is not None and drafter.program is not None
    return drafter


@PACKED
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_every_answer_is_the_reference_loops(mode: Mode, sampling: Sampling, packed: bool) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = drafter_of(target, packed)
    requests = requests_of([sampling])
    expected = alone(target, drafter, mode, requests)
    for limits in (Limits(4, 512), Limits(6, 512, step_tokens=7, block=4), Limits(6, 120, block=3)):
        completions = list(Engine(target, requests, limits, mode, drafter).run())
        assert rounds_of(completions) == expected
        for c in completions:
            assert c.output_ids == [token for r in c.rounds for token in r.tokens]
            assert (c.finish_reason == "stop") == (c.output_ids[-1] in target.stop_ids)
            assert len(c.output_ids) == TOKENS or c.finish_reason == "stop"
    tally = RoundTally()
    tally.extend(r for rounds in expected.values() for r in rounds)
    assert mode == "plain" or tally.accepted > 0


@PACKED
@pytest.mark.parametrize("draft_ids", [None, tuple(range(0, 64, 2))], ids=["full", "pruned"])
def test_requests_with_settings_of_their_own_share_steps(draft_ids: tuple[int, ...] | None, packed: bool) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = drafter_of(target, packed, draft_ids=draft_ids)
    requests = requests_of(SAMPLINGS)
    plan = EarlyStop((1.0, 1.2, 1.4, 1.6, 1.8))
    when = WhileItPays((1.2, 1.5, 1.8, 2.1, 2.4), 1.0)
    for more in (
        {},
        {"lookup": False},
        {"greedy": Planning(plan)},
        {"greedy": Planning(plan, when, 2)},
        {"greedy": Planning(plan), "sampled": Planning(plan, when, 3)},
        {"sampled": without_a_clock(4, [0.9, 0.8])},
        {"sampled": without_a_clock(4, [], calibrations=COUNTED)},
        {"greedy": Planning(plan, calibrations=DOUBTS), "sampled": Planning(plan, calibrations=DOUBTS)},
    ):
        completions = list(Engine(target, requests, Limits(6, 512), "dspark", drafter, **more).run())
        assert rounds_of(completions) == alone(target, drafter, "dspark", requests, **more)


@PACKED
@pytest.mark.parametrize("draft_ids", [None, tuple(range(0, 64, 2))], ids=["full", "pruned"])
def test_a_coupled_text_is_the_same_in_any_company_and_under_any_plan(
    draft_ids: tuple[int, ...] | None, packed: bool
) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = drafter_of(target, packed, draft_ids=draft_ids)
    # Beside each coupled request one that is not, with the same settings.
    free = requests_of(SAMPLINGS)
    coupled = [replace(r, id=f"{r.id}, coupled", coupled=True) for r in free]
    plain = {name: text_of(r) for name, r in alone(target, drafter, "plain", coupled).items()}
    plan = Planning(EarlyStop((1.0, 1.2, 1.4, 1.6, 1.8)), WhileItPays((1.2, 1.5, 1.8, 2.1, 2.4), 1.0), 3, DOUBTS)
    tally, others = RoundTally(), set()
    for mode, limits, more in (
        ("plain", Limits(5, 512), {}),
        ("ngram", Limits(12, 512, step_tokens=7, block=4), {}),
        ("dspark", Limits(12, 512), {}),
        ("dspark", Limits(6, 120, block=3), {"lookup": False}),
        ("dspark", Limits(12, 512), {"sampled": plan}),
        ("dspark", Limits(4, 512), {"sampled": without_a_clock(4, [0.9, 0.8])}),
    ):
        completions = list(Engine(target, [*free, *coupled], limits, mode, drafter, **more).run())
        found = rounds_of(completions)
        assert found == alone(target, drafter, mode, [*free, *coupled], **more)
        assert {name: text_of(found[name]) for name in plain} == plain
        tally.extend(each for name in plain for each in found[name])
        others.add(tuple(tuple(text_of(found[r.id])) for r in free))
    assert 0 < tally.accepted < tally.verified < tally.drafted
    assert len(others) > 2, "what is drawn afresh depends on the plan"


def test_a_greedy_request_may_be_called_coupled() -> None:
    target = tiny_target(sharpness=2.0)
    drafter = drafter_of(target, True)
    greedy = requests_of([Sampling()])
    coupled = [replace(request, coupled=True) for request in greedy]
    expected = alone(target, drafter, "dspark", greedy)
    assert alone(target, drafter, "dspark", coupled) == expected
    assert rounds_of(list(Engine(target, coupled, Limits(6, 512), "dspark", drafter).run())) == expected


@PACKED
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_planned_greedy_rounds_are_the_reference_loops(packed: bool, head: dict[str, Any]) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target, **head)
    if packed:
        drafter.pack()
        assert drafter.compiled is not None and (drafter.program is None) == (head == HEADS["narrow rnn"])
    requests = requests_of([Sampling()])
    more: dict[str, Any] = {"greedy": Planning(EarlyStop((1.0, 1.2, 1.4, 1.6, 1.8))), "lookup": False}
    expected = alone(target, drafter, "dspark", requests, **more)
    assert len({r.verified for rounds in expected.values() for r in rounds if r.drafted}) > 1, "confidence decides"
    completions = list(Engine(target, requests, Limits(3, 512), "dspark", drafter, **more).run())
    assert rounds_of(completions) == expected


@PACKED
def test_preempted_requests_go_on_as_if_nothing_had_happened(packed: bool) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = drafter_of(target, packed)
    requests = requests_of(SAMPLINGS)
    engine = Engine(target, requests, Limits(6, 110, block=2), "dspark", drafter)
    completions = list(engine.run())
    assert engine.admission.preemptions > 2
    assert rounds_of(completions) == alone(target, drafter, "dspark", requests)


def counting(engine: Engine) -> list[int]:
    """Sizes of the steps that the engine is going to make."""
    sizes: list[int] = []
    right = engine.target.forward

    def forward(ids: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(ids))
        return right(ids, *rest)

    engine.target.forward = forward  # type: ignore[method-assign]
    return sizes


def test_a_shared_beginning_is_run_once_and_drafts_just_as_well() -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    beginning = [1, *range(3, 27)]
    requests = [Request(f"{i}", [*beginning, 30 + i], Sampling(1.0), seed=i, max_tokens=TOKENS) for i in range(3)]
    expected = alone(target, drafter, "dspark", requests)
    engine = Engine(target, requests, Limits(1, 512, block=4), "dspark", drafter)
    sizes = counting(engine)
    assert rounds_of(list(engine.run())) == expected
    assert [size for size in sizes if size > 8] == [26], "the others find 24 of their 26 tokens"


def test_control_a_drafter_that_loses_rows_drafts_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    requests = requests_of([Sampling()])
    expected = alone(target, drafter, "dspark", requests, lookup=False)
    right = DrafterBlocks.extend

    def forgetful(self: DrafterBlocks, features: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> None:
        if len(rows) > 1:
            right(self, features[:-1], positions[:-1], rows[:-1])

    monkeypatch.setattr(DrafterBlocks, "extend", forgetful)
    completions = list(Engine(target, requests, Limits(2, 512), "dspark", drafter, lookup=False).run())
    found = rounds_of(completions)
    assert found != expected
    texts = {name: [token for r in rounds for token in r.tokens] for name, rounds in expected.items()}
    assert {c.request.id: c.output_ids for c in completions} == texts, "a bad draft never changes a text"


def test_plain_decoding_of_a_batch_is_hugging_faces_greedy_text() -> None:
    model = tiny_llama(sharpness=2.0)
    expected = {
        r.id: model.generate(torch.tensor([r.prompt_ids]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)[
            0, len(r.prompt_ids) :
        ].tolist()
        for r in requests_of([Sampling()])
    }
    completions = Engine(tiny_target(model), requests_of([Sampling()]), Limits(3, 256)).run()
    assert {c.request.id: c.output_ids for c in completions} == expected


def test_a_request_beyond_the_cache_is_refused_by_id() -> None:
    request = Request("long-one", [1] * 30, Sampling(), seed=0, max_tokens=40)
    with pytest.raises(UserError, match="long-one needs 70 positions.*the cache has 64"):
        list(Engine(tiny_target(), [request], Limits(1, 64, block=8)).run())


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_ends_where_the_context_does(mode: Mode) -> None:
    target = tiny_target(sharpness=2.0, eos_token_id=None)
    drafter = tiny_drafter(target)
    requests = [Request("0", [1, 5, 9] * 80, Sampling(), seed=0, max_tokens=1000)]
    completion = Decoder(target, drafter).answer(requests[0], mode)
    assert len(completion.output_ids) == target.max_positions - 240 and completion.finish_reason == "length"
    assert list(completion.rounds) == alone(target, drafter, mode, requests)["0"]
    with pytest.raises(UserError, match="0 has 256 tokens, the context of tiny holds 256"):
        Decoder(target).answer(replace(requests[0], prompt_ids=[1] * 256), "plain")


@pytest.mark.parametrize(("prompt", "tokens"), [([], 4), ([1], 0)])
def test_a_request_for_nothing_is_refused_by_id(prompt: list[int], tokens: int) -> None:
    with pytest.raises(UserError, match="empty-one.*at least one of each"):
        list(Engine(tiny_target(), [Request("empty-one", prompt, Sampling(), 0, tokens)], Limits(1, 64)).run())


@pytest.mark.parametrize("name", ["slots", "cache_tokens", "step_tokens", "block"])
def test_impossible_limits_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0"):
        Limits(**{"slots": 1, "cache_tokens": 1, name: 0})


def test_speculation_without_a_drafter_is_refused() -> None:
    with pytest.raises(UserError, match="--drafter"):
        Engine(tiny_target(), [], Limits(1, 64), "dspark")
