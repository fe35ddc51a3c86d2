"""Decoding through a real (tiny) target: every way gives the same text, and speculation really speculates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.foundation.errors import UserError
from dspark.nn.cache import KVCache
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.planner.single import EarlyStop, Planning, WhileItPays
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.targets.session import TargetSession
from tiny import STOP, tiny_drafter, tiny_llama, tiny_target

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 4, 4, 8, 16, 32, 3, 6, 12], [1, 9, 11], [1, 20, 21, 22, 23]]
GREEDY = Sampling()
Way = Callable[[Decoder, Request, Any], Iterator[Round]]
WAYS = pytest.mark.parametrize("way", [Decoder.stream, Decoder.reference])


def tokens_of(
    decoder: Decoder, prompt: list[int], mode: str, sampling: Sampling, seed: int = 0
) -> tuple[list[int], list[Round]]:
    """Through the reference loop and through the core: the same rounds."""
    request = Request("prompt", prompt, sampling, seed, 40)
    rounds = list(decoder.reference(request, mode))
    assert list(decoder.stream(request, mode)) == rounds
    return [token for r in rounds for token in r.tokens], rounds


def test_plain_decoding_is_hugging_faces_greedy_text() -> None:
    model = tiny_llama(sharpness=2.0)
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[
            0, len(prompt) :
        ].tolist()
        for prompt in PROMPTS
    ]
    decoder = Decoder(tiny_target(model))
    assert [tokens_of(decoder, prompt, "plain", GREEDY)[0] for prompt in PROMPTS] == expected


@pytest.mark.parametrize(
    ("mode", "lookup", "sources"),
    [("dspark", False, {"drafter"}), ("dspark", True, {"drafter", "lookup"}), ("ngram", True, {"lookup"})],
)
def test_greedy_speculation_gives_the_plain_text(mode: str, lookup: bool, sources: set[str]) -> None:
    target = tiny_target(sharpness=2.0)
    decoder = Decoder(target, tiny_drafter(target), lookup=lookup)
    total, drafting = RoundTally(), set()
    for prompt in PROMPTS:
        plain, _ = tokens_of(decoder, prompt, "plain", GREEDY)
        drafted, rounds = tokens_of(decoder, prompt, mode, GREEDY)
        assert drafted == plain
        total.extend(rounds)
        drafting |= {r.source for r in rounds if r.drafted}
    assert drafting == sources
    assert total.accepted > 0


def test_greedy_rounds_are_planned_and_sampled_ones_are_not() -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    whole, planned = Decoder(target, drafter), Decoder(target, drafter, Planning(EarlyStop((1.0, 1.2, 1.4, 1.6, 1.8))))
    drafted = verified = accepted = 0
    for prompt in PROMPTS:
        text, rounds = tokens_of(planned, prompt, "dspark", GREEDY)
        assert text == tokens_of(whole, prompt, "plain", GREEDY)[0]
        drafted += sum(r.drafted for r in rounds)
        verified += sum(r.verified for r in rounds)
        accepted += sum(r.accepted for r in rounds)
        # a seed means the same rounds on every machine
        sampled = [tokens_of(decoder, prompt, "dspark", Sampling(1.0), 3) for decoder in (whole, planned)]
        assert sampled[0] == sampled[1]
    assert 0 < accepted < verified < drafted


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_greedy_blocks_may_be_shorter_and_sampled_ones_are_whole(slots: int) -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    whole, shorter = (
        Decoder(target, drafter, lookup=False),
        Decoder(target, drafter, Planning(draft_slots=slots), lookup=False),
    )
    accepted = 0
    for prompt in PROMPTS:
        text, rounds = tokens_of(shorter, prompt, "dspark", GREEDY)
        assert text == tokens_of(whole, prompt, "plain", GREEDY)[0]
        assert {r.drafted for r in rounds[1:]} <= {0, slots}
        accepted += sum(r.accepted for r in rounds)
        sampled = [tokens_of(decoder, prompt, "dspark", Sampling(1.0), 3) for decoder in (whole, shorter)]
        assert sampled[0] == sampled[1]
    assert accepted > 0


@pytest.mark.parametrize("slots", [0, 5])
def test_blocks_of_no_length_are_refused(slots: int) -> None:
    target = tiny_target()
    for planning in (Planning(draft_slots=slots), Planning(special={GREEDY: Planning(draft_slots=slots)})):
        decoder = Decoder(target, tiny_drafter(target), planning)
        with pytest.raises(UserError, match="draft_slots is"):
            decoder.answer(Request("one", [1, 5], GREEDY, 0, 4), "dspark")


def test_greedy_requests_draft_while_it_pays_and_sampled_ones_always() -> None:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    whole, dear = Decoder(target, drafter), Decoder(target, drafter, Planning(when=WhileItPays((9.0,) * 5, 1.0)))
    for prompt in PROMPTS:
        text, rounds = tokens_of(dear, prompt, "dspark", GREEDY)
        assert text == tokens_of(whole, prompt, "plain", GREEDY)[0]
        tries = [r.index for r in rounds[:40] if r.drafted and r.source == "drafter"]
        assert len(tries) == 1, "so dear that the rest is plain, or copied"
        sampled = [tokens_of(decoder, prompt, "dspark", Sampling(1.0), 3) for decoder in (whole, dear)]
        assert sampled[0] == sampled[1]


def test_one_wrong_rollback_changes_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(sharpness=2.0)
    decoder = Decoder(target, tiny_drafter(target))

    def texts(mode: Any) -> list[list[int]]:
        requests = [Request("prompt", prompt, GREEDY, 0, 40) for prompt in PROMPTS]
        return [[t for r in decoder.reference(request, mode) for t in r.tokens] for request in requests]

    expected = texts("plain")
    right = TargetSession.truncate
    wrong = []

    def truncate(self: TargetSession, length: int) -> None:
        if self not in wrong and length < self.length:
            wrong.append(self)  # once a request, one rejected token is kept
            length += 1
        right(self, length)

    monkeypatch.setattr(TargetSession, "truncate", truncate)
    assert texts("dspark") != expected
    assert wrong


def test_an_answer_leaves_its_caches_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(sharpness=2.0)
    decoder, made, new_cache = Decoder(target, tiny_drafter(target)), [], Target.new_cache

    def counted(own: Target, blocks: int, size: int) -> KVCache:
        made.append(blocks)
        return new_cache(own, blocks, size)

    def rounds(prompt: list[int], max_tokens: int = 40) -> Iterator[Round]:
        return decoder.stream(Request("prompt", prompt, Sampling(1.0), 5, max_tokens), "dspark")

    monkeypatch.setattr(Target, "new_cache", counted)
    expected = [list(replace(decoder).stream(Request("prompt", p, Sampling(1.0), 5, 40), "dspark")) for p in PROMPTS]
    assert made == [2] * len(PROMPTS), "each decoder has its own"
    made.clear()
    assert [list(rounds(prompt)) for prompt in PROMPTS] == expected and made == [2]
    first, second = rounds(PROMPTS[0]), rounds(PROMPTS[1])
    assert [(next(first), next(second)) for _ in range(2)] == list(
        zip(*(each[:2] for each in expected[:2]), strict=True)
    )
    assert made == [2, 2], "two at a time don't share"
    first.close()
    assert list(second) == expected[1][2:]
    assert list(rounds([1, *range(3, 40)] * 4, 100)) and made == [2, 2, 4], "nor does one that needs more room"
    assert list(rounds(PROMPTS[2])) == expected[2] and made == [2, 2, 4]


@WAYS
def test_a_prompt_longer_than_the_context_is_refused(way: Way) -> None:
    decoder = Decoder(tiny_target())
    with pytest.raises(UserError, match="has 300 tokens"):
        list(way(decoder, Request("long", [1] * 300, GREEDY, 0, 4), "plain"))


@WAYS
def test_decoding_stops_where_the_context_is_full(way: Way) -> None:
    target = tiny_target(sharpness=2.0)
    decoder = Decoder(target, tiny_drafter(target))
    prompt = [1, *[7] * 249]
    plain, *others = (
        list(way(decoder, Request("full", prompt, GREEDY, 0, 40), mode)) for mode in ("plain", "dspark", "ngram")
    )
    text = [token for r in plain for token in r.tokens]
    assert len(text) == 6 and plain[-1].finish == "length"
    for rounds in others:
        assert [token for r in rounds for token in r.tokens] == text
        assert rounds[-1].finish == "length"
        assert sum(r.drafted for r in rounds) > 0


@WAYS
def test_speculation_without_a_drafter_is_refused(way: Way) -> None:
    with pytest.raises(UserError, match="--drafter"):
        way(Decoder(tiny_target()), Request("r", [1], GREEDY, 0, 4), "dspark")


@WAYS
def test_an_answer_that_ignores_stops_goes_on_behind_them(way: Way) -> None:
    decoder = Decoder(tiny_target(sharpness=2.0))
    request = Request("r", PROMPTS[0], Sampling(1.0), 0, 200)
    text, longer = (
        [t for r in way(decoder, each, "plain") for t in r.tokens]
        for each in (request, replace(request, ignore_stop=True))
    )
    assert text[-1] == STOP and len(text) < len(longer) == 200 and longer[: len(text)] == text
