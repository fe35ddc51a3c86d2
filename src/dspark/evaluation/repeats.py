"""How much of an output is a verbatim repeat of itself.

A small greedy model falls into loops, where any drafter looks brilliant; a figure of acceptance is only worth
something beside the share of repeated tokens and the tau of what lies outside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dspark.speculation.acceptance import Round

NGRAM = 8


def repeat_mask(ids: Sequence[int], ngram: int = NGRAM) -> list[bool]:
    """For each output token, whether the n-gram that ends at it has ended at an earlier token of this output.

    The two occurrences may overlap. The prompt is no part of it: quoting the question is not a loop. Token
    i's mark depends on ids[:i+1] alone, so it may select rounds by where they start.
    """
    seen: set[tuple[int, ...]] = set()
    mask = []
    for end in range(1, len(ids) + 1):
        gram = tuple(ids[max(0, end - ngram) : end])
        mask.append(gram in seen)
        seen.add(gram)  # the short ones at the start each have a length of their own and match nothing
    return mask


def repeat_share(outputs: Iterable[Sequence[int]], ngram: int = NGRAM) -> float:
    """Marked tokens over all tokens, pooled over outputs; 0 without tokens."""
    masks = [repeat_mask(ids, ngram) for ids in outputs]
    tokens = sum(map(len, masks))
    return sum(map(sum, masks)) / tokens if tokens else 0.0


def rounds_outside_repeats(rounds: Sequence[Round], ngram: int = NGRAM) -> list[Round]:
    """The rounds of one prompt, from round 0 on, whose anchor is not inside a repeat; for RoundTally's tau.

    A round is chosen by its anchor, which is older than the round: choosing by the tokens that it gained
    would prefer short rounds, for a long one has more chances to touch a repeat.
    """
    mask = repeat_mask([token for r in rounds for token in r.tokens], ngram)
    kept, position = [], 0
    for r in rounds:
        if position == 0 or not mask[position - 1]:
            kept.append(r)
        position += len(r.tokens)
    return kept
