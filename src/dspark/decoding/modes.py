"""The ways to decode, and what each looks up."""

from __future__ import annotations

from typing import Literal

from dspark.drafters.ngram import PromptLookup
from dspark.speculation.sampling import Sampling

Mode = Literal["plain", "dspark", "ngram"]

# As many tokens as a drafter of the usual block size proposes.
LOOKUP_BLOCK = 7
# In front of a drafter: a single id that has occurred before says less than the drafter knows, two say more.
SPARED_MIN_NGRAM, SPARED_MAX_NGRAM = 2, 8


def lookup_of(mode: Mode, spare: bool, sampling: Sampling) -> PromptLookup | None:
    """A request's prompt lookup: alone (``ngram``), or in front of the drafter it is to ``spare``; None for none."""
    if mode == "ngram":
        return PromptLookup(LOOKUP_BLOCK)
    if mode == "dspark" and spare:
        ngrams = SPARED_MAX_NGRAM, SPARED_MIN_NGRAM
        return PromptLookup(LOOKUP_BLOCK, *ngrams, cautious=True, temperature=sampling.temperature)
    return None
