"""Losslessness by enumeration with the product's own drafter: sequential head, draft vocabulary, growing context."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dspark.drafters.config import DSparkConfig
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.state import DSparkState
from dspark.nn.ends import Ends
from dspark.speculation.loop import Step
from dspark.speculation.sampling import Sampling
from enumeration import TOLERANCE, Logits, TableTarget, after, assert_law, measure, random_logits

WIDTH, TAPS = 8, (0, 1)


class TappedTable(TableTarget):
    """A table that also has hidden states: random numbers that depend on the id and on its position."""

    def extend(self, ids: list[int], logits: int) -> Step:
        start = self.length
        rows = super().extend(ids, logits).logits_NV
        states = [
            torch.randn(WIDTH * len(TAPS), generator=torch.Generator().manual_seed(97 * token + position))
            for position, token in enumerate(ids, start)
        ]
        return Step(rows, torch.stack(states))


def drafter_of(vocabulary: int, block: int, draft_ids: tuple[int, ...] | None, **head: Any) -> DSparkDrafter:
    config = DSparkConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_target_layers=3,
        target_layer_ids=TAPS,
        mask_token_id=0,
        block_size=block,
        draft_ids=draft_ids,
        **({"markov_rank": 4} | head),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        drafter = DSparkDrafter(config, Ends(torch.randn(vocabulary, WIDTH), torch.randn(vocabulary, WIDTH)))
        for parameter in drafter.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return drafter.eval()


def target_table(vocabulary: int) -> Logits:
    return after(1, random_logits(vocabulary, "drafter's target", dtype=torch.float32))


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7), Sampling(1.0, top_k=2, top_p=0.9)], ids=str)
@pytest.mark.parametrize("draft_ids", [None, (1, 2)], ids=["full", "pruned"])
def test_one_round_of_the_real_drafter_has_the_targets_law(
    draft_ids: tuple[int, ...] | None, sampling: Sampling
) -> None:
    drafter = drafter_of(3, 2, draft_ids)
    rounds = 8 if sampling.greedy else 1
    tokens = 1 + rounds * 3 if sampling.greedy else 4
    measured = measure(
        target_table(3), lambda: DSparkState(drafter), sampling, tokens=tokens, rounds=rounds, target=TappedTable
    )
    assert_law(measured, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    "head",
    [
        {"markov_head_type": "gated"},
        {"markov_head_type": "rnn"},
        {"markov_top_k": 2},
        {"markov_rank": 0},
        {"draft_window": 2},
    ],
    ids=str,
)
def test_every_head_keeps_the_law(head: dict[str, Any]) -> None:
    drafter = drafter_of(3, 2, None, **head)
    measured = measure(
        target_table(3), lambda: DSparkState(drafter), Sampling(1.0), tokens=4, rounds=1, target=TappedTable
    )
    assert measured.accepted > 0
    assert_law(measured, TOLERANCE[torch.float32])


def test_two_rounds_over_a_grown_context() -> None:
    drafter = drafter_of(2, 2, None)
    measured = measure(
        target_table(2), lambda: DSparkState(drafter), Sampling(1.0), tokens=7, rounds=2, target=TappedTable
    )
    assert_law(measured, TOLERANCE[torch.float32])


def test_control_a_draft_whose_probabilities_are_another_slots_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = drafter_of(3, 2, None)
    right = DSparkState.draft

    def shifted(self: DSparkState, *arguments: object) -> object:
        from dataclasses import replace

        draft = right(self, *arguments)  # type: ignore[arg-type]
        return replace(draft, probs=draft.probs.roll(1, dims=0))

    monkeypatch.setattr(DSparkState, "draft", shifted)
    measured = measure(
        target_table(3), lambda: DSparkState(drafter), Sampling(1.0), tokens=4, rounds=1, target=TappedTable
    )
    assert measured.accepted > 0
    assert measured.error > 1e-3
