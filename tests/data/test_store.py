"""The store: what it keeps is a copy, in few pieces of memory, within its bounds."""

from __future__ import annotations

import pytest
import torch

from dspark.data import store
from dspark.data.store import Store


def test_what_is_kept_is_a_copy_that_later_ones_leave_alone() -> None:
    numbers = torch.Generator().manual_seed(0)
    given = [[torch.randn(n, 5, generator=numbers), torch.randn(n, generator=numbers).bfloat16()] for n in range(1, 30)]
    kept = Store(10**6)
    copies = [kept.keep(some) for some in given]
    for some, copied in zip(given, copies, strict=True):
        assert copied is not None
        for tensor, copy in zip(some, copied, strict=True):
            assert torch.equal(tensor, copy) and tensor.dtype == copy.dtype
            assert copy.data_ptr() != tensor.data_ptr() and copy.data_ptr() % 64 == 0
    first = copies[0]
    assert first is not None
    first[0].fill_(7)
    assert torch.equal(copies[1][0], given[1][0])  # type: ignore[index]


def test_many_tensors_lie_in_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PIECE", 4096)
    kept = Store(10**6)
    copies = [kept.keep([torch.zeros(100)]) for _ in range(40)]
    pieces = {copy[0].untyped_storage().data_ptr() for copy in copies if copy is not None}
    assert len(pieces) == 5, "nine of 448 bytes in 4,096"
    large = kept.keep([torch.zeros(5000)])
    assert large is not None and large[0].untyped_storage().nbytes() == 20_032


def test_the_bounds_hold_for_all_or_none() -> None:
    kept = Store(128)
    assert kept.keep([torch.zeros(16), torch.zeros(17)]) is None
    assert kept.keep([torch.zeros(16), torch.zeros(1)]) is not None
    assert kept.keep([torch.zeros(1)]) is None and Store(0).keep([torch.zeros(1)]) is None
