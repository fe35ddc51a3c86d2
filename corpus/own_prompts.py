"""Prompts that a chat model writes itself: it is given its template up to where the user would begin, and goes on.

    python corpus/own_prompts.py --count 1000 --seed 9 --out prompts.jsonl
    python corpus/own_prompts.py --count 1000 --seed 12 --like instructions.jsonl --temperature 0.8 --out prompts.jsonl

What comes out are first turns of the kind that its makers taught it to answer, for which no set of prompts is needed
(the way is that of Magpie, arXiv 2406.08464). With ``--like`` it is shown some turns of others first, drawn anew for
every try, and goes on in their kind (that of Self-Instruct, arXiv 2212.10560). Those cut off by the limit, empty,
written twice or copied are left out.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from dspark.data.overlap import without_overlap
from dspark.data.prompts import held_out, read_prompts
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.foundation.records import JsonlWriter
from dspark.speculation.sampling import Sampling
from dspark.targets.chat import Chat
from dspark.targets.model import load_target

_LONGEST = 96
_SLOTS = 48
_SHOWN = 2
_LONGEST_SHOWN = 300  # characters


def main() -> None:
    """Write the prompts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--count", type=int, default=1000, help="how often to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--like", type=Path, nargs="*", default=[], help="prompts whose kind is wanted, JSONL")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="show nothing that overlaps these")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    target = load_target(options.target, options.dtype)
    sampling, first = Sampling(temperature=options.temperature, top_p=0.95), options.seed * 1_000_003
    shown = [
        prompt.turns[0]
        for prompt in without_overlap(read_prompts(options.like), read_prompts(options.against))
        if not held_out(prompt.id) and len(prompt.turns[0]) <= _LONGEST_SHOWN
    ]
    begun = [_begun(target.chat, shown, random.Random(first + i)) for i in range(options.count)]
    requests = [Request(f"own-{options.seed}-{i}", ids, sampling, first + i, _LONGEST) for i, ids in enumerate(begun)]
    found: dict[str, str] = {}
    limits = Limits(_SLOTS, cache_tokens=_SLOTS * (max(map(len, begun)) + _LONGEST))
    for answer in Engine(target, requests, limits).run():
        text = target.chat.decode(answer.output_ids).strip()
        if answer.finish_reason == "stop" and text and text not in shown:
            found.setdefault(text, answer.request.id)
    with JsonlWriter(options.out) as out:
        out.append({"id": name, "turns": [text]} for text, name in found.items())
    print(f"{len(found)} prompts of {options.count} tries: {options.out}")


def _begun(chat: Chat, shown: list[str], draws: random.Random) -> list[int]:
    """Ids up to where the target goes on as the user, after a few turns of ``shown``."""
    turns = draws.sample(shown, min(_SHOWN, len(shown)))
    return chat.opening_ids([{"role": "user", "content": turn} for turn in turns])


if __name__ == "__main__":
    main()
