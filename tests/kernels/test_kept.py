"""Numbers of a cache of bf16: read exactly, written to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dspark.kernels.kept import KINDS, Rows, write_kept
from dspark.kernels.machine import F32, Code, Value, can_compile
from dspark.kernels.rows import row_kernel

pytestmark = pytest.mark.skipif(not can_compile(), reason="no kernels are compiled here")
EVERY = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16)


def read(rows_NW: Tensor, lanes: int, in_order: bool) -> Tensor:
    """Rows as a kernel has them in its registers, put back into their order or not; fp32."""
    width, out_NW = rows_NW.shape[1], torch.empty(rows_NW.shape)

    def body(code: Code, table: list[Value], row: Value) -> None:
        source, destination, _ = table
        places, how = range(0, width, lanes), Rows(KINDS[rows_NW.dtype], width, lanes)
        first = code.build.mul(row, code.number(width))
        found = how.read(code, code.at(code.pointer(source), first, KINDS[rows_NW.dtype]), places)
        out = code.at(code.pointer(destination), first, F32)
        for place, part in zip(places, how.in_order(code, found) if in_order else found, strict=True):
            code.store(part, out, code.number(place), F32)

    row_kernel(3, body, rows_at=2)(rows_NW.data_ptr(), out_NW.data_ptr(), len(rows_NW))
    return out_NW


def arranged(rows_NW: Tensor, lanes: int) -> Tensor:
    """fp32 rows in the order in which rows of bf16 are read."""
    width, out_NW = rows_NW.shape[1], torch.empty(rows_NW.shape)

    def body(code: Code, table: list[Value], row: Value) -> None:
        source, out = (code.at(code.pointer(each), code.build.mul(row, code.number(width)), F32) for each in table[:2])
        places = range(0, width, lanes)
        parts = [code.load(source, code.number(place), F32, lanes) for place in places]
        for place, part in zip(places, Rows(KINDS[torch.bfloat16], width, lanes).arranged(code, parts), strict=True):
            code.store(part, out, code.number(place), F32)

    row_kernel(3, body, rows_at=2)(rows_NW.data_ptr(), out_NW.data_ptr(), len(rows_NW))
    return out_NW


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("width", [16, 64])
def test_every_bf16_number_is_read_exactly(width: int, lanes: int) -> None:
    found = read(EVERY.view(-1, width), lanes, in_order=True)
    assert torch.equal(found.view(torch.int32), EVERY.view(-1, width).float().view(torch.int32)), "NaN included"


@pytest.mark.parametrize("dtype", KINDS)
def test_what_a_row_is_multiplied_with_is_arranged_as_it_is_read(dtype: torch.dtype) -> None:
    numbers = torch.arange(128.0).view(2, 64)
    found = read(numbers.to(dtype), 16, in_order=False)
    assert torch.equal(found, arranged(numbers, 16)) == (dtype == torch.bfloat16)
    assert torch.equal(found, numbers) == (dtype == torch.float32), "bf16 is read by every second number"
    assert torch.equal(read(numbers.to(dtype), 16, in_order=True), numbers)


def test_numbers_are_written_to_the_nearest_as_pytorch_rounds_them() -> None:
    halves = (torch.arange(1 << 16, dtype=torch.int64) << 16) + 0x8000  # ties, infinities and NaN among them
    bits = torch.cat((halves - 1, halves, halves + 1, torch.randint(1 << 32, (4096,)))).to(torch.uint32)
    numbers, out = bits.view(torch.float32), torch.zeros(len(bits), dtype=torch.bfloat16)

    def body(code: Code, table: list[Value], row: Value) -> None:
        place = code.build.mul(row, code.number(8))
        value = code.load(code.pointer(table[0]), place, F32, 8)
        write_kept(code, KINDS[torch.bfloat16], value, code.pointer(table[1]), place)

    row_kernel(3, body, rows_at=2)(numbers.data_ptr(), out.data_ptr(), len(numbers) // 8)
    torch.testing.assert_close(out, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
    cut = (bits.to(torch.int64) >> 16).to(torch.int16).view(torch.bfloat16)
    assert not torch.equal(out.nan_to_num(), cut.nan_to_num()), "control: lower halves left out"
