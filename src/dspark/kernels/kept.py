"""Numbers as a cache keeps them: fp32, or bf16, which half the bytes hold and which kernels read as fp32, exactly.

bf16 numbers are the upper halves of fp32 ones, so of two neighbours that are read as one integer the second is had by
clearing the lower half, and the first by moving it up. A row that is read so comes in vectors of every second number,
and so must whatever it is multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir

from dspark.kernels.machine import F32, I16, I32, Code, Value
from dspark.kernels.numbers import brain

_UPPER = -(1 << 16)
KINDS: dict[torch.dtype, Any] = {torch.float32: F32, torch.bfloat16: I16}
"""What a kernel takes a number of that type for."""


class Rows:
    """Reads and arranges rows of ``width`` numbers of a cache, in vectors of ``lanes``."""

    def __init__(self, kind: Any, width: int, lanes: int) -> None:
        self._kind, self._lanes = kind, lanes
        self._twos = kind is I16 and width % (2 * lanes) == 0

    def read(self, code: Code, row: Value, places: range) -> list[Value]:
        """Numbers ``places`` (every first of a vector) of the row that begins at ``row``, as fp32."""
        if not self._twos:
            return [self._widened(code, code.load(row, code.number(at), self._kind, self._lanes)) for at in places]
        build, whole = code.build, ir.VectorType(I32, self._lanes)
        numbers = []
        for at in places[::2]:
            both = code.load(code.at(row, code.number(at), I16), code.number(0), I32, self._lanes)
            first = build.shl(both, ir.Constant(whole, [16] * self._lanes))
            second = build.and_(both, ir.Constant(whole, [_UPPER] * self._lanes))
            numbers += [build.bitcast(each, ir.VectorType(F32, self._lanes)) for each in (first, second)]
        return numbers

    def _widened(self, code: Code, kept: Value) -> Value:
        if self._kind is F32:
            return kept
        whole = ir.VectorType(I32, self._lanes)
        upper = code.build.shl(code.build.zext(kept, whole), ir.Constant(whole, [16] * self._lanes))
        return code.build.bitcast(upper, ir.VectorType(F32, self._lanes))

    def arranged(self, code: Code, vectors: Sequence[Value]) -> list[Value]:
        """A row's vectors, which hold its numbers in their order, as ``read`` has them."""
        lanes = range(self._lanes)
        return self._mixed(code, vectors, [2 * i for i in lanes], [2 * i + 1 for i in lanes])

    def in_order(self, code: Code, vectors: Sequence[Value]) -> list[Value]:
        """What ``arranged`` was given."""
        mixed = [i // 2 + self._lanes * (i % 2) for i in range(2 * self._lanes)]
        return self._mixed(code, vectors, mixed[: self._lanes], mixed[self._lanes :])

    def _mixed(self, code: Code, vectors: Sequence[Value], *orders: list[int]) -> list[Value]:
        if not self._twos:
            return list(vectors)
        masks = [ir.Constant(ir.VectorType(I32, self._lanes), order) for order in orders]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        return [code.build.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]


def write_kept(code: Code, kind: Any, value: Value, pointer: Value, index: Value) -> None:
    """fp32 numbers from ``index`` on, rounded to the nearest that can be kept, ties to even."""
    code.store(value if kind is F32 else brain(code, value), pointer, index, kind)
