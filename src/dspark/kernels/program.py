"""Kernels one after the other, and the scratch that such programs share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from llvmlite import ir
from numpy.typing import NDArray

from dspark.kernels.machine import I64, LINE, NUMBER, POINTER, Call, Claims, Code, Kernel, Value

Places = NDArray[np.int64]
_PAIR = 2 * NUMBER  # bytes of a kernel's address and its table's
_SETS = 2  # of claims: a call's are given up when all have done it, and the next call takes others


class Program:
    """Calls of kernels one after the other by one team: no thread begins a call before all have done the last.

    What the calls read and write must outlive the program.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        lengths = [1 + len(table) for _, table in calls]
        self.table: Places = np.array([number for _, table in calls for number in (0, *table)], dtype=np.int64)
        """All numbers of all calls, in a row; what is changed here is what the next run sees."""
        self._starts = [*accumulate(lengths, initial=1)]  # behind the address of each call's claims (``Code.shared``)
        self._kernels = [kernel for kernel, _ in calls]
        base = self.table.ctypes.data
        tables = (base + NUMBER * start for start in self._starts)
        pairs = [(kernel.address, table) for kernel, table in zip(self._kernels, tables, strict=False)]
        self._pairs = np.array(pairs, dtype=np.int64)
        self._first, self._claims = self._pairs.ctypes.data, Claims(0)

    def places(self, calls: Sequence[int], count: int) -> Places:
        """Where the first ``count`` numbers of some calls lie in the table, a row for each."""
        return np.array([[self._starts[call] + i for i in range(count)] for call in calls], dtype=np.int64)

    def by_row(self, fewer: Sequence[Program]) -> Places:
        """What each number of the table grows by with a row, ``fewer`` being the same calls for one row less, two less
        and so on, all as they were made. Kernels take any number of rows from a table, at addresses that stay.
        """
        found = self.table - fewer[0].table
        for less, program in enumerate(fewer, start=1):
            straight = bool((self.table - less * found == program.table).all())
            assert straight and program._kernels == self._kernels, "some number does not grow evenly with the rows"
        return found

    def run(self, first: int = 0, end: int | None = None) -> None:
        """Run calls ``first`` to ``end`` (to the last by default)."""
        end = len(self._kernels) if end is None else end
        assert 0 <= first <= end <= len(self._kernels), (first, end, len(self._kernels))
        if (threads := torch.get_num_threads()) > self._claims.threads:
            self._claims = Claims(threads, _SETS)
            for number, start in enumerate(self._starts[:-1]):
                self.table[start - 1] = self._claims.address(number % _SETS)
        _runner()(self._first + first * _PAIR, end - first)


_UNITS = 64  # scratch is begun for so many: growing voids every program
_WHOLE = 16  # and is for whole tiles of rows


class Rooms:
    """Scratch that the programs of one owner share, one program at a time: each uses the beginning of every room."""

    def __init__(self) -> None:
        self._units = 0
        self._kept: dict[tuple[str, int, torch.dtype], torch.Tensor] = {}

    def too_small(self, units: int) -> bool:
        """Whether ``units`` do not fit; then new rooms are begun, for twice as many as before, the old are void."""
        if units <= self._units:
            return False
        self._units = -(-max(units, 2 * self._units, _UNITS) // _WHOLE) * _WHOLE
        self._kept.clear()
        return True

    def room(self, name: str, width: int, units: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``units * width`` numbers, flat."""
        key = (name, width, dtype)
        if key not in self._kept:
            self._kept[key] = torch.zeros(self._units * width, dtype=dtype)
        return self._kept[key][: units * width]

    def fixed(self, scratch: torch.Tensor | None) -> torch.Tensor | None:
        """One room of this size and kind, whatever the units."""
        return None if scratch is None else self._kept.setdefault(("fixed", scratch.numel(), scratch.dtype), scratch)


@cache
def _runner() -> Kernel:
    module = ir.Module()
    code = Code(module, "program", (POINTER,))
    build = code.build
    kernel = ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer()
    pairs, count = (code.load(code.function.args[0], code.number(i), I64) for i in range(2))
    line = build.mul(code.team()[0], code.number(LINE // NUMBER))

    def call(index: Value, _: list[Value]) -> list[Value]:
        place = build.mul(index, code.number(2))
        function, table = (code.load(code.pointer(pairs), build.add(place, code.number(i)), I64) for i in range(2))
        build.call(build.inttoptr(function, kernel), [code.pointer(table)])
        code.barrier()
        claims = code.load(code.pointer(table), code.number(-1), I64)
        code.store(code.number(0), code.pointer(claims), line, I64)  # all is there again when the set's turn comes
        return []

    code.loop(code.number(0), count, 1, [], call)
    build.ret_void()
    return Kernel(module, "program")
