"""Which training prompts say again what an evaluation prompt says.

Prompts overlap where their normalised texts are equal or share 13 words in a row. Instructions that many prompts repeat
word for word ("reason step by step, and put your final answer ...") say nothing: with them in place, any two
questions that end in the same word would overlap, so they are cut out before words are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from dspark.data.prompts import Prompt

# Words in a row that make an overlap.
GRAM = 13

# An instruction: this many words in a row in more than one prompt of a hundred, and in more than a few of them at all.
_COMMON_GRAM = 8
_COMMON_SHARE = 0.01
_COMMON_LEAST = 20

_Words = list[str]
_Gram = tuple[str, ...]


def without_overlap(prompts: Sequence[Prompt], against: Sequence[Prompt]) -> list[Prompt]:
    """Those of ``prompts`` that overlap no prompt of ``against``, in order."""
    ours, theirs = [_turns(p) for p in prompts], [_turns(p) for p in against]
    common = _common([*ours, *theirs])
    texts = {" ".join(words) for turns in theirs for words in turns}
    grams = {gram for turns in theirs for gram in _own_grams(turns, common)}
    return [
        prompt
        for prompt, turns in zip(prompts, ours, strict=True)
        if all(" ".join(words) not in texts for words in turns) and grams.isdisjoint(_own_grams(turns, common))
    ]


def _turns(prompt: Prompt) -> list[_Words]:
    return ["".join(c.lower() if c.isalnum() else " " for c in turn).split() for turn in prompt.turns]


def _common(prompts: Sequence[list[_Words]]) -> set[_Gram]:
    """Runs of words that are instructions, not content."""
    counts: Counter[_Gram] = Counter()
    for turns in prompts:
        counts.update({gram for words in turns for gram in _grams(words, _COMMON_GRAM)})
    least = max(_COMMON_LEAST, _COMMON_SHARE * len(prompts))
    return {gram for gram, count in counts.items() if count > least}


def _own_grams(turns: Iterable[_Words], common: set[_Gram]) -> Iterator[_Gram]:
    return (gram for words in turns for run in _own_runs(words, common) for gram in _grams(run, GRAM))


def _own_runs(words: _Words, common: set[_Gram]) -> Iterator[_Words]:
    """What is left of a text between its instructions."""
    end = 0  # behind the last word known to belong to an instruction
    run: _Words = []
    for i, word in enumerate(words):
        if tuple(words[i : i + _COMMON_GRAM]) in common:
            end = i + _COMMON_GRAM
        if i >= end:
            run.append(word)
        elif run:
            yield run
            run = []
    yield run


def _grams(words: _Words, n: int) -> Iterator[_Gram]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
