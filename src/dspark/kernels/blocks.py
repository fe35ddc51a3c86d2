"""Weights that stay in blocks of 4 or 8 bits and become bf16 numbers in tiles just before they are multiplied.

What a step of few rows waits for is memory: blocks take a third to a half of the bytes of bf16 numbers, and writing a
panel out in the second cache costs less than reading the rest. A number is what ``d * q + m`` gives in fp32, rounded to
bf16 once: the very factor that ``Tiles`` of the de-quantised weight hold, so products are the same to the bit.

Legend: O outputs, I inputs, P panels of 32 outputs, S steps of 32 inputs (a block), H halves of a panel.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F16, F32, I8, I16, I32, Code, Value
from dspark.kernels.product import Form

HALF = 16  # outputs of a tile
_PAIRS = 16  # of inputs, in a tile
_LANES = 2 * HALF  # numbers of a pair of inputs
_TILE_BYTES = 1024


@cache
def can_unpack() -> bool:
    """Whether this CPU rounds to bf16 by itself (AVX512_BF16)."""
    return bool(llvm.get_host_cpu_features().get("avx512bf16", False))


class BrainType(ir.Type):  # type: ignore[misc]  # llvmlite is not typed
    """bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BrainType)

    def __hash__(self) -> int:
        return hash(BrainType)


class Blocks:
    """A weight's numbers and scales in the order in which tiles are filled.

    ``numbers``: panel, step, half, pair of inputs, then bytes: output, which of the pair; or nibbles: those of the
    first eight outputs low, of the others high. ``scales`` fp16: panel, step, half, d or m, output.
    """

    def __init__(self, form: Form, numbers_OI: Tensor, scales: list[Tensor]) -> None:
        """``numbers_OI`` uint8 of 0 to 15 or int8, ``scales`` d (and m) ``[O, S]`` fp16; outputs in whole panels."""
        assert form.grouped
        parts = numbers_OI.view(-1, 2, HALF, numbers_OI.shape[1] // _LANES, _PAIRS, 2).permute(0, 3, 1, 4, 2, 5)
        rows = parts.flatten(-2)  # of a tile
        self.form = form
        self.numbers = (rows[..., :HALF] | rows[..., HALF:] << 4 if form is Form.NIBBLE else rows).contiguous()
        by_scale = [scale.view(-1, 2, HALF, scale.shape[1]).permute(0, 3, 1, 2) for scale in scales]
        self.scales = torch.stack(by_scale, dim=3).contiguous()

    @property
    def width(self) -> int:
        """I."""
        return self.numbers.shape[1] * _LANES

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.numbers.nbytes + self.scales.nbytes

    @property
    def addresses(self) -> tuple[int, int]:
        """Of numbers and scales, for a kernel's table."""
        return self.numbers.data_ptr(), self.scales.data_ptr()


def step_bytes(form: Form) -> tuple[int, int]:
    """Bytes of a panel's numbers and of its scales, of one step."""
    nibbles = form is Form.NIBBLE
    return 2 * _PAIRS * _LANES // (1 + nibbles), 2 * 2 * HALF * (1 + nibbles)


def unpack(
    code: Code,
    form: Form,
    numbers: Value,
    scales: Value,
    steps: Value,
    out: Value,
    ahead: Value,
    half: Value | None = None,
) -> None:
    """Write the panel whose ``numbers`` and ``scales`` begin there to ``out``, as two tiles a step; ``half``: only the
    first tile of each (0) or the second (1).

    What lies so many steps ``ahead`` is asked for meanwhile.
    """
    build = code.build
    kinds = 2 if form is Form.NIBBLE else 1
    row_bytes = _LANES // (2 if form is Form.NIBBLE else 1)
    sizes = [each // 2 for each in step_bytes(form)]  # of a half
    wide = ir.VectorType(F32, HALF)

    def tile(number: Value, _: list[Value]) -> list[Value]:
        index = number if half is None else build.add(build.mul(number, code.number(2)), half)
        place = build.mul(index, code.number(kinds * HALF))
        places = (build.add(place, code.number(each * HALF)) for each in range(kinds))
        by_output = [build.fpext(code.load(scales, each, F16, HALF), wide) for each in places]
        pairs = [[_doubled(code, each, first) for each in by_output] for first in (0, HALF // 2)]
        source = code.at(numbers, build.mul(index, code.number(_PAIRS * row_bytes)), I8)
        there = code.at(out, build.mul(index, code.number(_TILE_BYTES)), I8)
        later = build.add(index, build.mul(ahead, code.number(2)))
        for place, size in zip((numbers, scales), sizes, strict=True):
            code.prefetch(code.at(place, build.mul(later, code.number(size)), I8), size)
        read = _nibbles if form is Form.NIBBLE else _bytes
        for pair in range(_PAIRS):
            counts = read(code, code.at(source, code.number(pair * row_bytes), I8))
            _write(code, counts, pairs, code.at(there, code.number(pair * 2 * _LANES), I8))
        return []

    code.loop(code.number(0), steps if half is not None else build.mul(steps, code.number(2)), 1, [], tile)


def _write(code: Code, counts: list[Value], scales: list[list[Value]], out: Value) -> None:
    """A row of a tile: 32 whole numbers times their scales, rounded."""
    build = code.build
    numbers = []
    for whole, (scale, *offset) in zip(counts, scales, strict=True):
        number = build.sitofp(whole, scale.type)
        # A count times a scale of half precision is exact, so one rounding is as good as two.
        numbers.append(code.fma(number, scale, offset[0]) if offset else build.fmul(number, scale))
    code.store(_rounded(code, *numbers), out, code.number(0), I16)


def _nibbles(code: Code, source: Value) -> list[Value]:
    """The lower halves of 16 bytes, then the upper ones, ``i32 [16]`` each."""
    build, whole = code.build, ir.VectorType(I32, HALF)
    both = build.zext(code.load(source, code.number(0), I8, HALF), whole)
    lower = build.and_(both, ir.Constant(whole, [15] * HALF))
    return [lower, build.lshr(both, ir.Constant(whole, [4] * HALF))]


def _bytes(code: Code, source: Value) -> list[Value]:
    """Signed ones, ``i32 [16]`` twice."""
    places = (code.number(0), code.number(HALF))
    return [code.build.sext(code.load(source, each, I8, HALF), ir.VectorType(I32, HALF)) for each in places]


def _doubled(code: Code, x: Value, first: int) -> Value:
    """Eight numbers from ``first`` on, each twice."""
    places = ir.Constant(ir.VectorType(I32, HALF), [first + i // 2 for i in range(HALF)])
    return code.build.shuffle_vector(x, x, places)


def _rounded(code: Code, lower: Value, upper: Value) -> Value:
    """The nearest bf16 numbers, ties to even, ``i16 [32]``."""
    name, kind = "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(BrainType(), _LANES)
    known = code.module.globals.get(name)
    function = known or ir.Function(code.module, ir.FunctionType(kind, [upper.type, lower.type]), name)
    return code.build.bitcast(code.build.call(function, [upper, lower]), ir.VectorType(I16, _LANES))
