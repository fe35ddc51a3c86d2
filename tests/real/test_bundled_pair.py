"""The shipped drafter with the real target, fp32: exact, and it really drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dspark.cli.pair import Pair, load_pair
from dspark.decoding.request import Request
from dspark.evaluation.identity import Comparison, IdentityTally, judge, replay
from dspark.kernels.whole import can_count
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.planner.single import WHOLE
from dspark.speculation.sampling import Sampling
from dspark.targets.session import TargetSession

QUESTIONS = [
    "A train goes 60 miles in 2 hours. How far does it go in 5 hours?",
    "Write a Python function that returns the sum of a list.",
    "Why do leaves fall in autumn?",
]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(dtype="float32")


def decoded(pair: Pair, prompt: list[int], mode: str) -> tuple[list[int], list[Round]]:
    """Greedy text and rounds of one prompt."""
    rounds = list(pair.decoder.stream(Request("prompt", prompt, Sampling(), 0, 40), mode))
    return [token for each in rounds for token in each.tokens], rounds


def compare(pair: Pair, question: str, mode: str) -> tuple[Comparison, list[Round]]:
    """One question, plain and in ``mode``."""
    prompt = pair.target.chat.prompt_ids([{"role": "user", "content": question}])
    plain, _ = decoded(pair, prompt, "plain")
    drafted, rounds = decoded(pair, prompt, mode)
    logits_at = replay(lambda: TargetSession(pair.target, len(prompt) + 64), prompt, plain)
    return judge(plain, drafted, logits_at, pair.target.dtype), rounds


@pytest.mark.parametrize("mode", ["dspark", "ngram"])
def test_greedy_texts_are_the_targets_own(pair: Pair, mode: str) -> None:
    identity, total = IdentityTally(), RoundTally()
    for question in QUESTIONS:
        comparison, rounds = compare(pair, question, mode)
        identity.add(comparison)
        total.extend(rounds)
    assert identity.as_json()["unexplained"] == 0
    assert identity.as_json()["total"] == len(QUESTIONS)
    assert total.drafted > 0
    assert total.accepted > 0


def test_the_shipped_drafter_gains_more_than_a_token_in_three_rounds(pair: Pair) -> None:
    """A drafter wired one position off has tau near 1; the shipped one must be well above."""
    total = RoundTally()
    whole = replace(pair.decoder, greedy=WHOLE)  # whatever pays here
    for question in QUESTIONS:
        prompt = pair.target.chat.prompt_ids([{"role": "user", "content": question}])
        total.extend(whole.stream(Request("prompt", prompt, Sampling(), 0, 40), "dspark"))
    assert total.tau > 1.7
    assert (
        pair.decoder.greedy.draft_slots is None
        or 1 <= pair.decoder.greedy.draft_slots < whole.drafter.config.block_size
    )


@pytest.mark.skipif(not can_count(), reason="this CPU multiplies no 8-bit numbers (VNNI)")
def test_whole_numbers_decode_the_same_text_drafted_or_not_and_nearly_that_of_fp32(pair: Pair) -> None:
    counted = load_pair(dtype="int16")
    assert set(counted.target.weights) == set(pair.target.weights) and counted.target.rounds is not None
    drafted = 0
    for question in QUESTIONS:
        prompt = pair.target.chat.prompt_ids([{"role": "user", "content": question}])
        plain, _ = decoded(counted, prompt, "plain")
        text, rounds = decoded(counted, prompt, "dspark")
        assert text == plain, "to the last id: products know no company"
        drafted += sum(each.accepted for each in rounds)
        logits = [TargetSession(each.target, 99).extend(prompt, 1).logits_NV for each in (counted, pair)]
        assert 0 < (logits[0] - logits[1]).abs().max() < 0.02
    assert drafted > 0


def test_prompts_begin_with_the_opening_that_the_target_can_go_on_from_itself(pair: Pair) -> None:
    chat = pair.target.chat
    opening = chat.opening_ids()
    prompt = chat.prompt_ids([{"role": "user", "content": QUESTIONS[0]}])
    assert len(opening) > 3 and prompt[: len(opening)] == opening
