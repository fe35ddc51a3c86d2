"""Context rows of many requests: features may wait for the next draft, in the order they came."""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.drafters.blocks import _WAITING, DrafterBlocks
from dspark.nn.blocks import BlockTable
from tiny import tiny_drafter, tiny_target

TARGET = tiny_target()
DRAFTER = tiny_drafter(TARGET)


def features(rows: int, seed: int) -> Tensor:
    width = DRAFTER.config.taps_width
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def hidden(parts: list[list[int]], at_once: bool) -> tuple[Tensor, list[Tensor]]:
    """A draft after positions that came in these parts, and the cached rows; ``at_once``: nothing waits."""
    blocks = DrafterBlocks(DRAFTER, 2, 128)
    for number, rows in enumerate(parts):
        blocks.extend(features(len(rows), number), torch.tensor(rows), torch.tensor(rows))
        if at_once:
            blocks._take()
    found = blocks.hidden([5], [BlockTable([0], 1 + max(row for rows in parts for row in rows))])
    return found, [each for layer in blocks.layers for each in layer]


def same(parts: list[list[int]]) -> bool:
    (a, rows_a), (b, rows_b) = hidden(parts, at_once=True), hidden(parts, at_once=False)
    pairs = [(a, b), *zip(rows_a, rows_b, strict=True)]
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in pairs)


def test_features_that_waited_are_those_that_did_not() -> None:
    assert same([[0, 1, 2], [3], [4], [5, 6]])


def test_a_row_that_was_written_again_holds_what_came_last() -> None:
    assert same([[0, 1, 2], [2, 3], [1, 2, 3, 4], [4]])


def test_many_do_not_wait() -> None:
    blocks = DrafterBlocks(DRAFTER, 2, 128)
    with torch.inference_mode():
        for row in range(_WAITING):
            assert len(blocks._waiting) == row
            blocks.extend(features(1, row), torch.tensor([row]), torch.tensor([row]))
    assert not blocks._waiting and not blocks._waiting_rows
