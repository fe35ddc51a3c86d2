"""What the loop yields and how it is counted: cuts, limits, tau."""

from __future__ import annotations

import math

import pytest
import torch

from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.draws import SeededDraws
from dspark.speculation.loop import Draft, generate
from dspark.speculation.rejection import verify
from dspark.speculation.sampling import Sampling
from enumeration import TableDrafter, TableTarget, mixed, random_logits

TARGET = random_logits(6, "rounds")
DRAFTER = mixed(TARGET, random_logits(6, "rounds drafter"), 0.8)
GREEDY = Sampling()


def decode(
    drafted: bool,
    sampling: Sampling = GREEDY,
    *,
    seed: int = 0,
    max_tokens: int = 40,
    stop_ids: tuple[int, ...] = (),
    context_limit: int | None = None,
    target: TableTarget | None = None,
) -> list[Round]:
    return list(
        generate(
            target or TableTarget(TARGET),
            TableDrafter(DRAFTER, 4) if drafted else None,
            [3, 1],
            sampling=sampling,
            draws=SeededDraws(seed),
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            context_limit=context_limit,
        )
    )


def ids_of(rounds: list[Round]) -> list[int]:
    return [token for r in rounds for token in r.tokens]


def test_greedy_drafting_changes_nothing_but_the_number_of_rounds() -> None:
    plain, spec = decode(False), decode(True)
    assert ids_of(plain) == ids_of(spec)
    assert len(plain) == 40
    assert len(spec) < len(plain)
    assert sum(r.drafted for r in spec) > 0
    assert sum(r.accepted for r in spec) > 0
    assert all(r.drafted == r.verified == 0 for r in plain)


def test_the_same_seed_gives_the_same_rounds() -> None:
    sampled = decode(True, Sampling(1.0), seed=5)
    assert sampled == decode(True, Sampling(1.0), seed=5)
    assert sampled != decode(True, Sampling(1.0), seed=6)
    assert sum(r.accepted for r in sampled) > 0


@pytest.mark.parametrize("drafted", [False, True])
def test_every_limit_and_stop_cuts_where_plain_text_would(drafted: bool) -> None:
    text = ids_of(decode(False))
    for limit in range(1, 12):
        rounds = decode(drafted, max_tokens=limit)
        assert ids_of(rounds) == text[:limit]
        assert rounds[-1].verified < limit - len(ids_of(rounds[:-1])) or limit == 1  # no row without use
        assert [r.finish for r in rounds] == [None] * (len(rounds) - 1) + ["length"]
    for stop in set(text):
        rounds = decode(drafted, stop_ids=(stop,))
        assert ids_of(rounds) == text[: text.index(stop) + 1]
        assert rounds[-1].finish == "stop"
        assert all(r.accepted <= len(r.tokens) for r in rounds)


@pytest.mark.parametrize("drafted", [False, True])
def test_the_context_limit_bounds_the_cache(drafted: bool) -> None:
    class Small(TableTarget):
        def extend(self, ids: list[int], logits: int):  # type: ignore[no-untyped-def]
            assert self.length + len(ids) <= 9, "the cache has 9 places"
            return super().extend(ids, logits)

    rounds = decode(drafted, context_limit=9, target=Small(TARGET))
    assert ids_of(rounds) == ids_of(decode(False))[:7]
    assert rounds[-1].finish == "length"


def test_a_request_without_room_is_refused() -> None:
    def start(prompt: list[int], max_tokens: int = 1, context_limit: int | None = None) -> Round:
        return next(
            generate(
                TableTarget(TARGET),
                None,
                prompt,
                sampling=GREEDY,
                draws=SeededDraws(0),
                max_tokens=max_tokens,
                context_limit=context_limit,
            )
        )

    with pytest.raises(UserError, match="empty"):
        start([])
    with pytest.raises(UserError, match="max_tokens"):
        start([1], max_tokens=0)
    with pytest.raises(UserError, match="context"):
        start([1, 2, 3], context_limit=3)


def test_tau_and_acceptance_are_pooled_as_specified() -> None:
    first = [
        Round(0, (9,), 0, 0, 0, None),
        Round(1, (1, 2, 3), 3, 3, 2, None),  # two accepted, the third rejected
        Round(2, (4,), 3, 0, 0, None),  # drafted, not verified: no slot was observed
        Round(3, (5, 6), 3, 3, 2, "stop"),  # cut behind an accepted stop id: slot 3 has no fate
    ]
    second = [
        Round(0, (9,), 0, 0, 0, None),
        Round(1, (1,), 3, 2, 0, None),
        Round(2, (1, 2, 3, 4), 3, 3, 3, "length"),
    ]
    tally = RoundTally()
    tally.extend([*first, *second])
    # 13 output tokens, less one for each of 2 prompts, over 5 rounds.
    assert tally.tau == 11 / 5
    assert (tally.prompts, tally.rounds, tally.drafted, tally.verified, tally.accepted) == (2, 5, 15, 11, 7)
    assert (tally.observed_at, tally.accepted_at) == ([4, 3, 2], [3, 3, 1])
    assert tally.conditional_acceptance == [0.75, 1.0, 0.5]
    assert tally.survival == [0.75, 0.75, 0.375]
    assert math.isnan(RoundTally().tau)


def test_a_pruned_draft_is_spread_over_the_vocabulary() -> None:
    draft = Draft([5, 2], torch.tensor([[0.25, 0.75], [1.0, 0.0]]), torch.tensor([2, 5]), [0.0, 0.0])
    assert draft.dense(6).tolist() == [[0, 0, 0.25, 0, 0, 0.75], [0, 0, 1, 0, 0, 0]]
    assert draft.survival() == [0.5, 0.25]


def test_drafts_that_do_not_fit_their_probabilities_are_refused() -> None:
    half = torch.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="do not fit"):
        verify([0], half, half, SeededDraws(0), 1)
    with pytest.raises(ValueError, match="drawn from"):
        verify([0], torch.tensor([[0.0, 1.0]]), half, SeededDraws(0), 1)
