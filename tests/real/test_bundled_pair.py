"""The shipped drafter with the real target, fp32: exact, and it really drafts."""

from __future__ import annotations

import pytest

from dspark.cli.pair import Pair, load_pair
from dspark.evaluation.identity import IdentityTally, judge, replay
from dspark.speculation.acceptance import RoundTally
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


@pytest.mark.parametrize("mode", ["dspark", "ngram"])
def test_greedy_texts_are_the_targets_own(pair: Pair, mode: str) -> None:
    decoder, target = pair.decoder, pair.target
    identity, tally = IdentityTally(), RoundTally()
    for question in QUESTIONS:
        prompt = target.chat.prompt_ids([{"role": "user", "content": question}])

        def text(way: str, prompt: list[int] = prompt) -> list[int]:
            rounds = list(decoder.rounds(prompt, mode=way, sampling=Sampling(), seed=0, max_tokens=40))
            if way != "plain":
                tally.extend(rounds)
            return [token for each in rounds for token in each.tokens]

        plain, drafted = text("plain"), text(mode)
        logits_at = replay(lambda: TargetSession(target, len(prompt) + 64), prompt, plain)
        identity.add(judge(plain, drafted, logits_at, target.dtype))
    assert identity.as_json()["unexplained"] == 0
    assert identity.as_json()["total"] == len(QUESTIONS)
    assert tally.drafted > 0
    assert tally.accepted > 0


def test_the_shipped_drafter_gains_more_than_a_token_in_three_rounds(pair: Pair) -> None:
    """A drafter wired one position off has tau near 1; the shipped one must be well above."""
    tally = RoundTally()
    for seed, question in enumerate(QUESTIONS):
        prompt = pair.target.chat.prompt_ids([{"role": "user", "content": question}])
        tally.extend(pair.decoder.rounds(prompt, mode="dspark", sampling=Sampling(), seed=seed, max_tokens=40))
    assert tally.tau > 1.3
