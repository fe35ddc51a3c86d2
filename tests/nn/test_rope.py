"""Angles that are read equal those that are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.nn.rope import RotationTable, rotary


def test_a_table_grows_with_the_positions_asked_for() -> None:
    computed: list[int] = []

    def compute(at_T: Tensor) -> Tensor:
        computed.append(len(at_T))
        return torch.complex(*rotary(at_T, 32, 1e4))

    table = RotationTable(compute)
    for positions in ([5, 0, 5], [1023], [7, 1024], [9000, 1], [9001]):
        at = torch.tensor(positions)
        with torch.inference_mode():
            expected = torch.complex(*rotary(at, 32, 1e4))
            assert torch.equal(table.at(positions), expected) and torch.equal(table.at(positions, at), expected)
    assert computed == [1024, 2048, 16384], "once for all positions below"
    assert not table.at(positions).is_inference(), "what is kept can be read in either mode"
