"""A token's hidden state and logits are the same to the bit whatever it is computed with.

So a verified draft is judged by the very numbers that plain decoding would have had: where all of a target is
compiled, greedy texts can't differ by a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_families import FAMILIES, model_of
from torch import Tensor

from dspark.kernels.tiles import can_tile
from dspark.kernels.whole import can_count
from dspark.nn.blocks import BlockTable
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch
from tiny import VOCAB, tiny_llama, tiny_target

LENGTH = 150  # of which attention sums stretches of 64
# Some of their modules have no compiled twin, and PyTorch's kernels take turns by the number of rows.
NOT_ALL_COMPILED = {"Gemma 4", "Cohere 2", "gpt-oss"}


def text(seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(target: Target, texts: Sequence[list[int]], steps: Sequence[Sequence[int]], size: int) -> list[Tensor]:
    """Logits of every text after steps that take so many tokens of each."""
    blocks = -(-LENGTH // size)
    cache = target.new_cache(blocks * len(texts), size)
    order = torch.randperm(blocks * len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tables = [BlockTable(order[i * blocks : (i + 1) * blocks]) for i in range(len(texts))]
    found: list[list[Tensor]] = [[] for _ in texts]
    with torch.inference_mode():
        for counts in steps:
            some = [i for i, count in enumerate(counts) if count and tables[i].length < LENGTH]
            parts = [texts[i][tables[i].length :][: counts[i]] for i in some]
            ids, taken = sum(parts, []), [len(part) for part in parts]
            out = target.forward(torch.tensor(ids), RaggedBatch(cache, [tables[i] for i in some], taken))
            for i, logits in zip(some, target.head(out.hidden_TD).split(taken), strict=True):
                found[i].append(logits)
    return [torch.cat(parts) for parts in found]


def differs(target: Target) -> bool:
    """Whether a text's logits depend on how it is cut into steps, on its neighbours, or on the size of blocks."""
    texts = [text(seed) for seed in range(9)]
    alone = logits_of(target, texts[:1], [[1]] * LENGTH, LENGTH)[0]
    assert len(alone) == LENGTH
    whole = logits_of(target, texts[:1], [[LENGTH]], 4)[0]
    steps = [[9, 30, 1, 0, 7, 40, 2, 5, 16], [6] + [4] * 8, [70] + [1] * 8, [LENGTH] + [60] * 8]
    company = logits_of(target, texts, steps, 16)[0]
    return not (torch.equal(alone, whole) and torch.equal(alone, company))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_ALL_COMPILED))
def test_company_changes_no_bit(family: str) -> None:
    assert not differs(tiny_target(model_of(family)))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not can_tile(), reason="no bf16 (AVX512_BF16, AMX)")),
        pytest.param(torch.int16, marks=pytest.mark.skipif(not can_count(), reason="no 8-bit products (VNNI)")),
    ],
)
def test_company_changes_no_bit_of_rounded_products(rows: torch.dtype) -> None:
    target = tiny_target(tiny_llama(hidden_size=64, intermediate_size=96), rounding=rows)
    assert target.rounds == rows and not differs(target)


def test_control_pytorchs_own_kernels_take_turns(no_kernels: None) -> None:
    assert differs(tiny_target(tiny_llama(hidden_size=64, intermediate_size=96)))


@given(data=st.data())
def test_any_steps_in_any_company_are_the_same_bits(data: st.DataObject) -> None:
    expected = [logits_of(TARGET, [text(seed)], [[LENGTH]], LENGTH)[0] for seed in range(3)]
    left, steps = [LENGTH] * 3, []
    while any(left):
        step = [data.draw(st.integers(0, min(each, 60))) for each in left]
        if not any(step):
            step = [min(each, 1) for each in left]
        steps.append(step)
        left = [have - taken for have, taken in zip(left, step, strict=True)]
    found = logits_of(TARGET, [text(seed) for seed in range(3)], steps, data.draw(st.sampled_from([1, 5, 8, 64])))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


TARGET = tiny_target(tiny_llama(hidden_size=64, intermediate_size=96))
