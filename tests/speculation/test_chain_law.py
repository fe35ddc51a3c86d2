"""Losslessness by enumeration with the product's own autoregressive drafters, whose rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.drafters.chain import ChainDrafter
from dspark.drafters.kinds import config_of, drafter_of
from dspark.drafters.state import DSparkState
from dspark.nn.ends import Ends
from dspark.speculation.loop import Draft, Step
from dspark.speculation.sampling import Sampling
from enumeration import TOLERANCE, Logits, Measured, TableTarget, after, assert_law, measure, random_logits

WIDTH, LAYERS = 8, 4
TAPS = {"eagle3": (0, 2), "mtp": (3,)}
KINDS = pytest.mark.parametrize("kind", TAPS)


def tapped(taps: Sequence[int]) -> type[TableTarget]:
    """A table that also has hidden states: random numbers that depend on the id and on its position."""

    class Tapped(TableTarget):
        def extend(self, ids: list[int], logits: int) -> Step:
            start = self.length
            rows = super().extend(ids, logits).logits_NV
            states = [
                torch.randn(WIDTH * len(taps), generator=torch.Generator().manual_seed(97 * token + position))
                for position, token in enumerate(ids, start)
            ]
            return Step(rows, torch.stack(states))

    return Tapped


def drafter_for(kind: str, vocabulary: int, draft_ids: tuple[int, ...] | None = None) -> ChainDrafter:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "num_target_layers": LAYERS,
        "target_layer_ids": TAPS[kind],
        "draft_ids": draft_ids,
    }
    sizes |= {"block_size": 2} if kind == "eagle3" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        ends = Ends(torch.randn(vocabulary, WIDTH), torch.randn(vocabulary, WIDTH))
        drafter = drafter_of(config_of(kind, sizes), ends)
        for parameter in drafter.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    assert isinstance(drafter, ChainDrafter)
    return drafter.eval()


def measured(drafter: ChainDrafter, sampling: Sampling, *, tokens: int, rounds: int) -> Measured:
    def target(vocabulary: int) -> Logits:
        return after(1, random_logits(vocabulary, "drafter's target", dtype=torch.float32))

    return measure(
        target(drafter.config.vocab_size),
        lambda: DSparkState(drafter),
        sampling,
        tokens=tokens,
        rounds=rounds,
        target=tapped(drafter.config.target_layer_ids),
    )


@KINDS
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7), Sampling(1.0, top_k=2, top_p=0.9)], ids=str)
@pytest.mark.parametrize("draft_ids", [None, (1, 2)], ids=["full", "pruned"])
def test_one_round_has_the_targets_law(kind: str, draft_ids: tuple[int, ...] | None, sampling: Sampling) -> None:
    rounds = 8 if sampling.greedy else 1
    tokens = 1 + rounds * 3 if sampling.greedy else 4
    assert_law(
        measured(drafter_for(kind, 3, draft_ids), sampling, tokens=tokens, rounds=rounds), TOLERANCE[torch.float32]
    )


@KINDS
def test_two_rounds_over_rows_that_were_dropped(kind: str) -> None:
    assert_law(measured(drafter_for(kind, 2), Sampling(1.0), tokens=7, rounds=2), TOLERANCE[torch.float32])


@KINDS
def test_control_probabilities_of_another_draft_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if p_d were worked out anew from another state than the one that was drawn from."""
    right = DSparkState.draft

    def otherwise(self: DSparkState, *arguments: Any) -> Draft:
        draft = right(self, *arguments)
        assert draft.probs is not None
        return replace(draft, probs=draft.probs.roll(1, dims=1))

    monkeypatch.setattr(DSparkState, "draft", otherwise)
    found = measured(drafter_for(kind, 3), Sampling(1.0), tokens=4, rounds=1)
    assert found.drafted > 0 and found.accepted > 0
    assert found.error > 1e-3
