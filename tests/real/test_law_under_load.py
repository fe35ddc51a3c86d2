"""The law of sampled answers of the real pair, many at once and planned together, against the target's own law."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from dspark.cli.pair import Pair, load_pair
from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.request import Request
from dspark.speculation.acceptance import RoundTally
from dspark.speculation.cost import CostModel
from dspark.speculation.sampling import Sampling, distribution
from dspark.targets.session import TargetSession

TEXT = """The harbour was quiet that morning. Two fishermen were mending their nets on the quay while a third one, older
than both, told them about a storm that he had seen as a boy. Nobody believed him any more, but they liked to listen.
Behind them the market was being set up: bread, apples, a few chickens in a cage, and the first oranges of the year. A
girl in a blue coat asked what the oranges cost, and when she had heard it she laughed and walked on. Then the old man
pointed at the sea. Far out, where the water met the sky, there was something that none of them had ever seen before,
and it was slowly coming nearer. The girl put down her basket and said: I think that"""
SAMPLING, TOKENS, SAMPLES, SLOTS = Sampling(1.0, top_k=8), 4, 20_000, 64
# Drafts pay and are trimmed, whatever machine this runs on.
COSTS = CostModel((1, 64, 256), (1, 64, 256), (1.0, 0.3, 1.5, 0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.3, 0.0, 0.0))


def law_of(pair: Pair, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Of the first four tokens: a tree of 585 prefixes."""
    session = TargetSession(pair.target, len(prompt) + TOKENS)
    session.extend(prompt[:-1], logits=0)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        longer = {}
        for text, p in law.items():
            start = session.length
            (p_V,) = distribution(session.extend([prompt[-1], *text], logits=1).logits_NV, SAMPLING)
            session.truncate(start)
            longer |= {(*text, i): p * float(p_V[i]) for i in p_V.nonzero().flatten().tolist()}
        law = longer
    return law


def chi_square(found: Counter[int], law: dict[int, float]) -> float:
    """The chance of a sample at least as far from the law; ids that are seldom to be expected count as one."""
    often = {token: SAMPLES * p for token, p in law.items() if SAMPLES * p >= 10}
    cells = [(found[token], expected) for token, expected in often.items()]
    rest = SAMPLES - sum(often.values())
    if rest > 1e-6 * SAMPLES:
        cells.append((SAMPLES - sum(seen for seen, _ in cells), rest))
    distance, free = sum((seen - expected) ** 2 / expected for seen, expected in cells), len(cells) - 1
    # Wilson and Hilferty: its cube root is all but normal.
    z = ((distance / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


def marginals(law: dict[tuple[int, ...], float]) -> list[dict[int, float]]:
    positions: list[dict[int, float]] = [defaultdict(float) for _ in range(TOKENS)]
    for text, p in law.items():
        for position, token in zip(positions, text, strict=True):
            position[token] += p
    return positions


@pytest.mark.slow
def test_sampled_answers_under_load_have_the_targets_law() -> None:
    pair = load_pair(dtype="float32")
    drafter = pair.decoder.drafter
    assert drafter is not None
    ids = pair.target.chat.encode(TEXT)[-BLOCK - 1 :]
    assert len(ids) == BLOCK + 1, "all but its last id is read once and found by all"
    law = law_of(pair, ids)
    positions = marginals(law)
    assert abs(sum(law.values()) - 1) < 1e-5 and max(positions[0].values()) <= 0.5
    requests = (Request(f"{i}", ids, SAMPLING, i, TOKENS + 3, ignore_stop=True) for i in range(SAMPLES))
    settings = Adaptive(COSTS, pair.calibrations, guard=None, lengths=(1, 2, 4))
    planner = Together(settings, SLOTS, drafter.config.block_size)
    engine = Engine(pair.target, requests, Limits(SLOTS, SLOTS * 3 * BLOCK), "dspark", drafter, planner=planner)
    found, tally = [Counter[int]() for _ in range(TOKENS)], RoundTally()
    for answer in engine.run():
        tally.extend(answer.rounds)
        for position, token in zip(found, answer.output_ids, strict=False):
            position[token] += 1
    assert tally.drafted > tally.verified > tally.accepted > SAMPLES / 4
    chances = sorted(chi_square(found[k], positions[k]) for k in range(1, TOKENS))  # the first is the prompt's
    assert all(p >= 0.001 / (len(chances) - rank) for rank, p in enumerate(chances)), chances  # Holm
    for k in range(1, TOKENS):
        top = max(positions[k], key=positions[k].__getitem__)
        bent = {token: 0.95 * p + 0.05 * (token == top) for token, p in positions[k].items()}
        assert chi_square(found[k], bent) < 1e-6, "a law that is five per cent off is told from it"
