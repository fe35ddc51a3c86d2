"""Products in bf16 with fp32 sums on the matrix units of a CPU (AMX).

A tile holds 16 rows of 32 bf16 numbers; up to two tiles of rows and two of weights make four of sums at a time. Weights
come in panels of 32 outputs in the order in which tiles are loaded: pairs of inputs side by side, as the units want
them. Every output is one sum over its inputs in their order, whatever the other rows of its tile hold, so a row's
result never depends on its neighbours.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import suppress
from functools import cache

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F32, I8, I16, I64, POINTER, Call, Code, Kernel, Rooms, Value, can_compile
from dspark.kernels.numbers import brain

_ROWS = 16  # of a tile; as many fp32 sums stand in each
_STEP = 32  # inputs of a tile
_PANEL = 2 * _ROWS
_TILE_BYTES = 1024
_BLOCK = 512  # rows whose bf16 numbers stay in the second cache while all panels go by
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
# Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), which a process asks once before its first tile.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


@cache
def can_tile() -> bool:
    """Whether this CPU has the units, and the system lets us use them."""
    here = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and can_compile()
    features = llvm.get_host_cpu_features() if here else {}
    if not all(features.get(each, False) for each in ("amx-tile", "amx-bf16", "avx512f")):
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0)
    return False


def fits(width: int) -> bool:
    """Whether weights of so many inputs can be had as ``Tiles``."""
    return width % _STEP == 0


class Tiles:
    """A frozen weight ``[O, I]`` rounded to bf16, and its bias; used as ``Panels`` are."""

    name = "bfloat16"

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.outputs, self.width = weight_OI.shape
        assert fits(self.width), self.width
        short = -self.outputs % _PANEL
        self.padded = self.outputs + short
        weights = torch.nn.functional.pad(weight_OI.to(torch.bfloat16), (0, 0, 0, short))
        # outputs: panel, tile, column; inputs: step, pair, which of the pair
        parts = weights.view(-1, 2, _ROWS, self.width // _STEP, _STEP // 2, 2)
        self._weights = parts.permute(0, 3, 1, 4, 2, 5).contiguous()
        self._zeros = torch.zeros(self.padded)
        self._bias = self._zeros if bias_O is None else torch.nn.functional.pad(bias_O.float(), (0, short))

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self._weights.nbytes

    def __call__(self, x_TI: Tensor, more_TO: Tensor | None = None) -> Tensor:
        """``[T, I]`` of any floating dtype, rounded to bf16, to fp32 ``[T, O]``.

        ``more_TO``: another such product of as many rows and outputs, to which this one is added in place.
        """
        rows, x_TI = len(x_TI), x_TI.float().contiguous()
        if more_TO is None:
            out_TO = torch.empty(rows, self.padded)
        else:
            like = (more_TO.dtype, tuple(more_TO.shape), more_TO.stride())
            assert like == (torch.float32, (rows, self.outputs), (self.padded, 1)), "not a product of ours"
            out_TO = more_TO.as_strided((rows, self.padded), (self.padded, 1))
        scratch = self.scratch(rows)
        kernel, table = self.call(x_TI, out_TO, None if more_TO is None else out_TO, scratch)
        kernel(*table)
        return out_TO[:, : self.outputs] if more_TO is None else more_TO

    def scratch(self, rows: int) -> Tensor:
        """Room for that many rows in tiles."""
        return torch.empty(-(-rows // _ROWS) * _ROWS, self.width, dtype=torch.bfloat16)

    def room(self, rooms: Rooms, rows: int) -> Tensor:
        """``scratch`` that programs share."""
        return rooms.room("rows in tiles", self.width, -(-rows // _ROWS) * _ROWS, torch.bfloat16)

    def call(self, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None, scratch: Tensor | None) -> Call:
        """``Panels.call``, with factors rounded to bf16."""
        assert scratch is not None
        x = x_TI.data_ptr(), self.width, len(x_TI), self.width // _STEP, scratch.data_ptr()
        out = out_TO.data_ptr(), self.padded, self._bias.data_ptr()
        more = (self._zeros.data_ptr(), 0) if more_TO is None else (more_TO.data_ptr(), self.padded)
        return _kernel(), (*x, self._weights.data_ptr(), len(self._weights), *out, *more)


@cache
def _kernel() -> Kernel:
    """Rows times panels, plus a bias, plus rows of their own; the table is ``_TABLE``."""
    assert can_tile(), "this process may not use the units"
    return Kernel(_Product().module, "tiles")


class _Product:
    """The function a team of threads runs: together they round the rows and lay them out in tiles, then each takes its
    share of the panels, and blocks of rows go by.
    """

    def __init__(self) -> None:
        self.module = ir.Module()
        self._code = code = Code(self.module, "tiles", (POINTER,))
        build = code.build
        table = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(_TABLE))]
        self._at = at = dict(zip(_TABLE, table, strict=True))
        self._sums = code.room(2 * _ROWS * _PANEL)
        self._row_tile_bytes = build.mul(at["steps"], code.number(_TILE_BYTES))
        self._panel_bytes = build.mul(at["steps"], code.number(2 * _TILE_BYTES))
        self._lay_out()
        code.barrier()
        first, last = code.share(at["panels"])
        self._configure()
        few = build.icmp_signed("<=", at["rows"], code.number(_ROWS))
        code.choose(build.zext(few, I64), [lambda: self._many(first, last), lambda: self._few(first, last)])
        self._tile("tilerelease", [])
        build.ret_void()

    def _lay_out(self) -> None:
        """Rows as bf16, tile by tile. What stands in a last tile's other rows yields sums that nobody reads."""
        code, build, at = self._code, self._code.build, self._at
        first, last = code.share(build.mul(at["rows"], at["steps"]))

        def part(index: Value, _: list[Value]) -> list[Value]:
            row, step = build.udiv(index, at["steps"]), build.urem(index, at["steps"])
            here = build.add(build.mul(row, at["x_row"]), build.mul(step, code.number(_STEP)))
            tile, place = build.udiv(row, code.number(_ROWS)), build.urem(row, code.number(_ROWS))
            there = build.add(build.mul(tile, self._row_tile_bytes), build.mul(step, code.number(_TILE_BYTES)))
            there = build.add(there, build.mul(place, code.number(2 * _STEP)))
            numbers = brain(code, code.load(code.pointer(at["x"]), here, F32, _STEP))
            code.store(numbers, code.at(code.pointer(at["narrow"]), there, I8), code.number(0), I16)
            return []

        code.loop(first, last, 1, [], part)

    def _configure(self) -> None:
        """All eight tiles: 16 rows of 64 bytes."""
        code, place = self._code, self._code.room(_ROWS)  # 64 bytes
        code.store(ir.Constant(ir.VectorType(I8, 64), [1] + [0] * 63), place, code.number(0), I8)
        columns = ir.Constant(ir.VectorType(I16, 8), [2 * _STEP] * 8)
        code.store(columns, place, code.number(8), I16)
        code.store(ir.Constant(ir.VectorType(I8, 8), [_ROWS] * 8), place, code.number(48), I8)
        self._tile("ldtilecfg", [place])

    def _few(self, first: Value, last: Value) -> None:
        """One tile of rows: two panels at a time, then one that is left. Weights are read once, so the two behind are
        asked for meanwhile: tiles are loaded too few at a time to hide what memory takes.
        """
        code, end = self._code, self._at["rows"]
        whole = code.build.sub(last, code.build.srem(code.build.sub(last, first), code.number(2)))

        def tile(row: Value, _: list[Value]) -> list[Value]:
            code.loop(first, whole, 2, [], lambda panel, _: self._multiply(row, end, panel, (1, 2)))
            return code.loop(whole, last, 1, [], lambda panel, _: self._multiply(row, end, panel, (1, 1)))

        code.loop(code.number(0), end, _ROWS, [], tile)

    def _many(self, first: Value, last: Value) -> None:
        """Blocks of rows, panel by panel: two tiles of rows at a time, then one that is left."""
        code, build, at = self._code, self._code.build, self._at

        def block(row: Value, _: list[Value]) -> list[Value]:
            end = code.least(build.add(row, code.number(_BLOCK)), at["rows"])
            tiles = build.sdiv(build.add(build.sub(end, row), code.number(_ROWS - 1)), code.number(_ROWS))
            odd = build.add(row, build.mul(build.sdiv(tiles, code.number(2)), code.number(2 * _ROWS)))

            def panel(panel: Value, _: list[Value]) -> list[Value]:
                code.loop(row, odd, 2 * _ROWS, [], lambda at, _: self._multiply(at, end, panel, (2, 1)))
                return code.loop(odd, end, _ROWS, [], lambda at, _: self._multiply(at, end, panel, (1, 1)))

            return code.loop(first, last, 1, [], panel)

        code.loop(code.number(0), at["rows"], _BLOCK, [], block)

    def _multiply(self, row: Value, end: Value, panel: Value, shape: tuple[int, int]) -> list[Value]:
        """Tiles of rows from ``row`` on times panels from ``panel`` on, so many of each: in all, four tiles of sums."""
        code, build, at = self._code, self._code.build, self._at
        first = build.mul(build.sdiv(row, code.number(_ROWS)), self._row_tile_bytes)
        x = code.at(code.pointer(at["narrow"]), first, I8)
        weights = code.at(code.pointer(at["weights"]), build.mul(panel, self._panel_bytes), I8)
        self._sum(x, weights, shape)
        rows = code.least(code.number(shape[0] * _ROWS), build.sub(end, row))
        for number in range(shape[1]):
            column = build.mul(build.add(panel, code.number(number)), code.number(_PANEL))
            self._write(row, rows, column, (number * _PANEL, shape[1] * _PANEL))
        return []

    def _sum(self, x: Value, weights: Value, shape: tuple[int, int]) -> None:
        """All inputs, step by step: sums in the first tiles, rows in the next, weights in the last two by turns."""
        code, build = self._code, self._code.build
        line, (rows, panels) = code.number(2 * _STEP), shape
        columns, once = 2 * panels, rows == 1
        sums = rows * columns
        for number in range(sums):
            self._tile("tilezero", [number])

        def step(index: Value, _: list[Value]) -> list[Value]:
            there = code.at(weights, build.mul(index, code.number(2 * _TILE_BYTES)), I8)
            here = code.at(x, build.mul(index, code.number(_TILE_BYTES)), I8)
            for number in range(rows):
                place = code.at(here, build.mul(self._row_tile_bytes, code.number(number)), I8)
                self._tile("tileloadd64", [sums + number, place, line])
            for column in range(columns):
                panel = code.at(there, build.mul(self._panel_bytes, code.number(column // 2)), I8)
                place = code.at(panel, code.number(column % 2 * _TILE_BYTES), I8)
                if once:
                    later = code.at(place, build.mul(self._panel_bytes, code.number(panels)), I8)
                    code.prefetch(later, _TILE_BYTES)
                self._tile("tileloadd64", [6 + column % 2, place, line])
                for row in range(rows):
                    self._tile("tdpbf16ps", [row * columns + column, sums + row, 6 + column % 2])
            return []

        code.loop(code.number(0), self._at["steps"], 1, [], step)
        for number in range(sums):
            row, column = divmod(number, columns)
            place = code.at(self._sums, code.number((row * _ROWS * columns + column) * _ROWS), F32)
            self._tile("tilestored64", [number, place, code.number(4 * _ROWS * columns)])

    def _write(self, first: Value, rows: Value, column: Value, sums: tuple[int, int]) -> list[Value]:
        """The rows that are there of a panel's sums, with what is added; ``sums``: where they begin, row by row."""
        code, build, at = self._code, self._code.build, self._at
        bias = code.load(code.pointer(at["bias"]), column, F32, _PANEL)

        def write(row: Value, _: list[Value]) -> list[Value]:
            to = build.add(first, row)
            of, there = (build.add(build.mul(to, at[name]), column) for name in ("more_row", "out_row"))
            place = build.add(build.mul(row, code.number(sums[1])), code.number(sums[0]))
            total = build.fadd(code.load(self._sums, place, F32, _PANEL), bias)
            total = build.fadd(total, code.load(code.pointer(at["more"]), of, F32, _PANEL))
            code.store(total, code.pointer(at["out"]), there, F32)
            return []

        return code.loop(code.number(0), rows, 1, [], write)

    def _tile(self, name: str, arguments: list[Value | int]) -> None:
        """An instruction on tiles; plain integers are numbers of tiles."""
        values = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in values])
        known = self.module.globals.get(f"llvm.x86.{name}")
        self._code.build.call(known or ir.Function(self.module, kind, f"llvm.x86.{name}"), values)
