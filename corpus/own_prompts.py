"""Prompts that a chat model writes itself: it is given its template up to where the user would begin, and goes on.

    python corpus/own_prompts.py --count 1000 --seed 9 --out prompts.jsonl

What comes out are first turns of the kind that its makers taught it to answer, for which no set of prompts is needed
(the way is that of Magpie, arXiv 2406.08464). Those cut off by the limit, empty or written twice are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.request import Request
from dspark.foundation.records import JsonlWriter
from dspark.speculation.sampling import Sampling
from dspark.targets.model import load_target

_LONGEST = 96
_SLOTS = 48


def main() -> None:
    """Write the prompts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--count", type=int, default=1000, help="how often to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    target = load_target(options.target, options.dtype)
    begun, sampling = target.chat.opening_ids(), Sampling(temperature=1.0, top_p=0.95)
    first = options.seed * 1_000_003
    requests = [Request(f"own-{options.seed}-{i}", begun, sampling, first + i, _LONGEST) for i in range(options.count)]
    found: dict[str, str] = {}
    limits = Limits(_SLOTS, cache_tokens=_SLOTS * (len(begun) + _LONGEST))
    for answer in Engine(target, requests, limits).run():
        text = target.chat.decode(answer.output_ids).strip()
        if answer.finish_reason == "stop" and text:
            found.setdefault(text, answer.request.id)
    with JsonlWriter(options.out) as out:
        out.append({"id": name, "turns": [text]} for text, name in found.items())
    print(f"{len(found)} prompts of {options.count} tries: {options.out}")


if __name__ == "__main__":
    main()
