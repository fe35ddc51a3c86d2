"""Verbatim repeats: which tokens, which share, which rounds."""

from __future__ import annotations

from dspark.evaluation.repeats import repeat_mask, repeat_share, rounds_outside_repeats
from dspark.speculation.acceptance import Round, RoundTally


def test_a_token_is_marked_where_its_ngram_ends_again() -> None:
    text = [1, 2, 3, 9, 1, 2, 3, 9, 4]
    assert repeat_mask(text, 3) == [False] * 6 + [True, True, False]
    assert repeat_mask([5] * 5, 3) == [False, False, False, True, True]  # occurrences may overlap
    assert repeat_mask([1, 1], 3) == [False, False]
    assert repeat_share([text, [5] * 5], 3) == 4 / 14
    assert repeat_share([]) == 0


def test_marks_depend_on_the_past_alone() -> None:
    text = [1, 2, 1, 2, 1, 2, 7, 1, 2, 1]
    whole = repeat_mask(text, 2)
    assert whole == [repeat_mask(text[: i + 1], 2)[-1] for i in range(len(text))]


def test_rounds_are_chosen_by_their_anchor() -> None:
    rounds = [
        Round(0, (1,), 0, 0, 0, None),
        Round(1, (2, 1, 2), 2, 2, 2, None),  # ends inside a repeat; its anchor, the first 1, is not
        Round(2, (1, 2, 1), 2, 2, 2, None),  # starts inside one
        Round(3, (7,), 2, 2, 0, None),  # starts inside one, though its own token is new
        Round(4, (8,), 2, 2, 0, "length"),
    ]
    kept = rounds_outside_repeats(rounds, 2)
    assert [r.index for r in kept] == [0, 1, 4]
    tally = RoundTally()
    tally.extend(kept)
    assert tally.tau == 4 / 2
