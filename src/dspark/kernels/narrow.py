"""What products of rows that are rounded to bf16 share, whatever instructions multiply them.

Weights come in panels of 32 outputs, two columns of tiles, in the order in which these are loaded: pairs of inputs side
by side, as instructions for bf16 want them. Every output is one sum over its inputs in their order, in fp32, whatever
other rows there are, so a row's result never depends on its neighbours.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from llvmlite import ir

from dspark.kernels.blocks import step_bytes, unpack
from dspark.kernels.machine import F32, I8, I16, I64, POINTER, Code, Value
from dspark.kernels.numbers import brain
from dspark.kernels.product import Form

ROWS = 16  # of a tile of rows; as many outputs has one of weights
STEP = 32  # inputs of a tile
PANEL = 2 * ROWS
TILE_BYTES = 1024
AT_ONCE = 4  # steps of blocks that are written out before they are multiplied
_TABLE = (
    "x",
    "x_row",
    "rows",
    "steps",
    "narrow",
    "weights",
    "panels",
    "out",
    "out_row",
    "bias",
    "more",
    "more_row",
)
_OF_BLOCKS = ("scales", "unpacked")


class NarrowProduct(ABC):
    """The function a team of threads runs: together they round the rows and lay them out, then each takes its share of
    the panels. The table is ``_TABLE``, and ``_OF_BLOCKS`` behind it where weights are blocks of ``form``.
    """

    def __init__(self, name: str, form: Form | None, sums: int) -> None:
        """``sums``: numbers of the room that every thread has for sums."""
        self.module, self.name, self._form = ir.Module(), name, form
        self._code = code = Code(self.module, name, (POINTER,))
        build, names = code.build, (*_TABLE, *(_OF_BLOCKS if form else ()))
        table = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(names))]
        self._at = at = dict(zip(names, table, strict=True))
        self._sums = code.room(sums)
        self._steps_bytes = build.mul(at["steps"], code.number(TILE_BYTES))
        self._panel_bytes = build.mul(at["steps"], code.number(2 * TILE_BYTES))
        self._lay_out()
        code.barrier()
        self._multiply_all()
        build.ret_void()

    @abstractmethod
    def _multiply_all(self) -> None:
        """Multiply this thread's share of the panels."""

    @abstractmethod
    def _place(self, row: Value, step: Value) -> Value:
        """Bytes to where 32 inputs of a row stand as bf16."""

    def _lay_out(self) -> None:
        """Rows as bf16."""
        code, build, at = self._code, self._code.build, self._at
        first, last = code.share(build.mul(at["rows"], at["steps"]))

        def part(index: Value, _: list[Value]) -> list[Value]:
            row, step = build.udiv(index, at["steps"]), build.urem(index, at["steps"])
            here = build.add(build.mul(row, at["x_row"]), build.mul(step, code.number(STEP)))
            there = self._place(row, step)
            numbers = brain(code, code.load(code.pointer(at["x"]), here, F32, STEP))
            code.store(numbers, code.at(code.pointer(at["narrow"]), there, I8), code.number(0), I16)
            return []

        code.loop(first, last, 1, [], part)

    def _weights(self, panel: Value) -> Value:
        """Where the tiles of a panel are, two a step."""
        code = self._code
        return code.at(code.pointer(self._at["weights"]), code.build.mul(panel, self._panel_bytes), I8)

    def _unpacked(
        self, panel: Value, steps: tuple[Value, Value], together: Sequence[Value], half: Value | None = None
    ) -> Value:
        """``_weights`` of a panel of blocks, steps ``(first, end)``, written to this thread's room for it as one of
        those that are read ``together``; what lies behind all of these is asked for meanwhile.
        """
        code, build, at, form = self._code, self._code.build, self._at, self._form
        assert form is not None
        (thread, _), (first, end) = code.team(), steps
        room = build.add(build.mul(thread, code.number(2)), code.number(together.index(panel)))
        out = code.at(code.pointer(at["unpacked"]), build.mul(room, self._panel_bytes), I8)
        step = build.add(build.mul(panel, at["steps"]), first)
        numbers, scales = (
            code.at(code.pointer(at[name]), build.mul(step, code.number(size)), I8)
            for name, size in zip(("weights", "scales"), step_bytes(form), strict=True)
        )
        ahead = build.mul(at["steps"], code.number(len(together)))
        unpack(code, form, numbers, scales, build.sub(end, first), out, ahead, half)
        return out

    def _write(self, rows: tuple[Value, Value], outputs: tuple[Value, int], sums: tuple[int, int]) -> None:
        """``(first, how many)`` rows of ``outputs`` from there on, so many, with what is added; ``sums``: where theirs
        begin, and how far apart those of two rows are.
        """
        code, build, at = self._code, self._code.build, self._at
        output, width = outputs
        bias = code.load(code.pointer(at["bias"]), output, F32, width)

        def write(row: Value, _: list[Value]) -> list[Value]:
            to = build.add(rows[0], row)
            of, there = (build.add(build.mul(to, at[name]), output) for name in ("more_row", "out_row"))
            place = build.add(build.mul(row, code.number(sums[1])), code.number(sums[0]))
            total = build.fadd(code.load(self._sums, place, F32, width), bias)
            total = build.fadd(total, code.load(code.pointer(at["more"]), of, F32, width))
            code.store(total, code.pointer(at["out"]), there, F32)
            return []

        code.loop(code.number(0), rows[1], 1, [], write)
