"""Lookup in front of a drafter: lossless, because the past alone says which of the two proposes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.drafters.state import DSparkState
from dspark.speculation.acceptance import Round, Source
from dspark.speculation.confidence import Platt
from dspark.speculation.loop import Draft, DrafterState, Sample
from dspark.speculation.sampling import Sampling
from enumeration import TOLERANCE, TableDrafter, after, assert_law, measure, mixed, random_logits
from test_drafter_law import TappedTable, drafter_of, target_table

TARGET = random_logits(2, "lookup first target")
DRAFTER = mixed(TARGET, random_logits(2, "lookup first drafter"))


def table_drafter() -> TableDrafter:
    """Refuses, at every call, features that are not those of the committed tokens."""
    return TableDrafter(DRAFTER, 2)


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.0, top_p=0.8)], ids=str)
@pytest.mark.parametrize("ngrams", [(1, 2), (2, 3)], ids=["from 1", "from 2"])
def test_copies_and_drafts_together_have_the_targets_law(ngrams: tuple[int, int], sampling: Sampling) -> None:
    fewest, most = ngrams
    lookup = partial(PromptLookup, 2, most, fewest)
    measured = measure(TARGET, table_drafter, sampling, tokens=6, lookup=lookup)
    assert_law(measured)
    assert min(measured.by_source["drafter"], measured.by_source["lookup"]) > 0.1


def test_a_copy_is_not_read_through_the_drafters_map() -> None:
    """It says itself how sure it is, and may be longer than the blocks that a map knows."""
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 3
    copy = PromptLookup(7, 8, 2, cautious=True).draft(ids, None, lambda *_: (0, torch.zeros(1)))
    own = Draft(copy.tokens[:4], confidence=[1.0] * 4)
    doubting = Platt((1.0,) * 4, (-3.0,) * 4)
    assert copy.source == "lookup" and len(copy.tokens) == 7
    assert copy.survival(doubting) == copy.survival()
    assert own.survival(doubting) < own.survival()


def test_the_real_drafters_context_survives_rounds_it_sat_out() -> None:
    drafter = drafter_of(2, 2, None)
    measured = measure(
        target_table(2),
        lambda: DSparkState(drafter),
        Sampling(1.0),
        tokens=7,
        lookup=lambda: PromptLookup(2, 2, 2),
        target=TappedTable,
    )
    assert_law(measured, TOLERANCE[torch.float32])
    assert min(measured.by_source["drafter"], measured.by_source["lookup"]) > 0.1


@pytest.mark.parametrize("resting", ["drafter", "lookup"])
def test_whoever_does_not_pay_rests_alone(resting: Source) -> None:
    def when(rounds: Sequence[Round], source: Source) -> bool:
        return source != resting or len(rounds) % 2 == 0

    lookup = partial(PromptLookup, 2, 2, 1)
    measured = measure(TARGET, table_drafter, Sampling(0.7), tokens=6, lookup=lookup, when=when)
    assert_law(measured)
    every_round = measure(TARGET, table_drafter, Sampling(0.7), tokens=6, lookup=lookup)
    assert 0 < measured.by_source[resting] < every_round.by_source[resting]
    assert measured.by_source["drafter" if resting == "lookup" else "lookup"] > 0


def test_a_greedy_text_is_the_targets() -> None:
    logits = after(1, random_logits(3, "lookup first greedy"))
    measured = measure(
        logits,
        lambda: TableDrafter(mixed(logits, random_logits(3, "noise"), 0.8), 2),
        Sampling(0.0),
        tokens=40,
        lookup=lambda: PromptLookup(3, 2, 1),
    )
    assert_law(measured)
    assert min(measured.by_source["drafter"], measured.by_source["lookup"]) > 0


class ChosenAfterDrafting:
    """Wrong: drafts first, and takes the copy where the draft that was drawn disagrees with it."""

    def __init__(self, lookup: PromptLookup, drafter: DrafterState) -> None:
        self.lookup, self.drafter = lookup, drafter

    def draft(self, ids: list[int], features: Tensor | None, sample: Sample, slots: int | None = None) -> Draft:
        drafted = self.drafter.draft(ids, features, sample)
        copied = self.lookup.draft(ids, None, sample)
        return copied if copied.tokens and copied.tokens[0] != drafted.tokens[0] else drafted


def test_control_a_choice_that_has_seen_the_draft_is_caught() -> None:
    measured = measure(
        TARGET, lambda: ChosenAfterDrafting(PromptLookup(2, 2, 1), table_drafter()), Sampling(1.0), tokens=5
    )
    assert measured.accepted > 0
    assert measured.error > 0.01
