"""Prompt lookup proposes what a search by hand would, one-hot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dspark.drafters.ngram import PromptLookup
from dspark.foundation.errors import UserError


def no_draws(slot: int, logits: Tensor) -> tuple[int, Tensor]:
    raise AssertionError("prompt lookup draws nothing")


def by_search(ids: list[int], block: int, fewest: int) -> list[int]:
    """The definition by scanning: longest suffix first, latest occurrence, the copy may run over itself."""
    for n in range(min(3, len(ids)), fewest - 1, -1):
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:]:
                text = list(ids)
                for i in range(block):
                    text.append(text[end + i])
                return text[len(ids) :]
    return []


@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    grown=st.lists(st.integers(1, 5)),
    fewest=st.integers(1, 3),
)
def test_proposals_are_those_of_a_search(ids: list[int], grown: list[int], fewest: int) -> None:
    lookup = PromptLookup(4, 3, fewest)
    end = 1
    for step in [*grown, len(ids)]:  # the index grows with the request, some ids a round
        draft = lookup.draft(ids[:end], None, no_draws)
        assert draft.tokens == by_search(ids[:end], 4, fewest)
        dense = draft.dense(4)
        assert dense.shape == (len(draft.tokens), 4)
        assert torch.equal(dense, torch.eye(4)[draft.tokens])
        end = min(end + step, len(ids))


def test_the_longest_suffix_wins_over_the_latest() -> None:
    # "1 2 3" was followed by 7; the later "3" alone by 8.
    assert PromptLookup(1).draft([1, 2, 3, 7, 3, 8, 1, 2, 3], None, no_draws).tokens == [7]


def test_a_loop_is_proposed_in_full() -> None:
    assert PromptLookup(5).draft([4, 1, 2, 1, 2], None, no_draws).tokens == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("text", "length", "matched"), [([1, 2, 9, 1, 2], 2, 2), ([5, 6] * 6, 7, 8), ([1, 2, 3] * 2, 3, 3)]
)
def test_a_cautious_copy_is_as_long_as_its_match(
    text: list[int], length: int, matched: int, temperature: float
) -> None:
    """And is believed the less the more a text is left to chance."""
    draft = PromptLookup(7, 8, 2, cautious=True, temperature=temperature).draft(text, None, no_draws)
    assert (
        draft.tokens == PromptLookup(7, 8, 2).draft(text, None, no_draws).tokens[:length]
        and len(draft.tokens) == length
    )
    survival = draft.survival()
    assert survival is not None
    stands = matched / (matched + 1.5 + 2 * temperature**2)
    assert survival == pytest.approx([stands**k for k in range(1, length + 1)])
    assert PromptLookup(7).draft(text, None, no_draws).survival() is None


def test_a_text_without_repetition_proposes_nothing() -> None:
    draft = PromptLookup(5).draft([1, 2, 3], None, no_draws)
    assert draft.tokens == []
    assert draft.dense(9).shape == (0, 9)


@pytest.mark.parametrize("arguments", [(0,), (1, 0, 0), (1, 2, 3)])
def test_impossible_sizes_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        PromptLookup(*arguments)
