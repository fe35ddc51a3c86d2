"""Products in bf16 on the matrix units of a CPU (AMX).

A tile holds 16 rows of 32 bf16 numbers; each tile of rows makes one of sums with each tile of weights, up to six at a
time.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial

import llvmlite.binding as llvm
from llvmlite import ir

from dspark.kernels.machine import F32, I8, I16, Value, can_compile
from dspark.kernels.narrow import AT_ONCE, PANEL, ROWS, STEP, TILE_BYTES, NarrowProduct
from dspark.kernels.product import Form

_TILES = 8
# Tiles of rows that all weights are read once for, and how many columns of tiles of weights they meet at a time.
_FEW = ((1, 4), (2, 2), (3, 2), (4, 1))
_BLOCK = 512  # rows whose bf16 numbers stay in the second cache while all panels go by
# Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), which a process asks once before its first tile.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


@cache
def has_units() -> bool:
    """Whether this CPU has matrix units, and the system lets us use them."""
    here = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and can_compile()
    features = llvm.get_host_cpu_features() if here else {}
    if not all(features.get(each, False) for each in ("amx-tile", "amx-bf16", "avx512f")):
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0)
    return False


class MatrixProduct(NarrowProduct):
    """Rows in tiles; blocks of them go by."""

    def __init__(self, form: Form | None) -> None:
        super().__init__("tiles", form, (_TILES - 2) * ROWS * ROWS)

    def _multiply_all(self) -> None:
        code, build, at = self._code, self._code.build, self._at
        self._configure()
        tiles = build.sdiv(build.sub(at["rows"], code.number(1)), code.number(ROWS))

        def panels(first: Value, last: Value) -> None:
            few = [partial(self._few, first, last, *way) for way in _FEW]
            code.choose(code.least(tiles, code.number(len(few))), [*few, lambda: self._many(first, last)])

        code.shared(at["panels"], at["rows"], panels)
        self._tile("tilerelease", [])

    def _place(self, row: Value, step: Value) -> Value:
        """Tile by tile. What stands in a last tile's other rows yields sums that nobody reads."""
        code, build = self._code, self._code.build
        tile, place = build.udiv(row, code.number(ROWS)), build.urem(row, code.number(ROWS))
        there = build.add(build.mul(tile, self._steps_bytes), build.mul(step, code.number(TILE_BYTES)))
        return build.add(there, build.mul(place, code.number(2 * STEP)))

    def _configure(self) -> None:
        """All eight tiles: 16 rows of 64 bytes."""
        code, place = self._code, self._code.room(ROWS)  # 64 bytes
        code.store(ir.Constant(ir.VectorType(I8, 64), [1] + [0] * 63), place, code.number(0), I8)
        columns = ir.Constant(ir.VectorType(I16, 8), [2 * STEP] * 8)
        code.store(columns, place, code.number(8), I16)
        code.store(ir.Constant(ir.VectorType(I8, 8), [ROWS] * 8), place, code.number(48), I8)
        self._tile("ldtilecfg", [place])

    def _few(self, first: Value, last: Value, tiles: int, columns: int) -> None:
        """So many tiles of rows, which every weight is read once for: so many columns of tiles of weights at a time,
        then a panel's two that are left.
        """
        code, build = self._code, self._code.build
        begin, end = (build.mul(each, code.number(2)) for each in (first, last))
        whole = build.sub(end, build.srem(build.sub(end, begin), code.number(columns)))
        anything = build.icmp_signed(">", self._at["rows"], code.number(0))
        with build.if_then(anything):
            code.loop(begin, whole, columns, [], lambda column, _: self._once(column, columns, tiles))
            if columns > 2:
                code.loop(whole, end, 2, [], lambda column, _: self._once(column, 2, tiles))

    def _once(self, column: Value, columns: int, tiles: int) -> list[Value]:
        """All rows times so many columns from ``column`` on: whole panels, or half of one. Blocks become tiles a few
        steps at a time, which the cache nearest holds.
        """
        code, build, steps = self._code, self._code.build, self._at["steps"]
        panels = [build.add(build.sdiv(column, code.number(2)), code.number(i)) for i in range(-(-columns // 2))]
        half = build.srem(column, code.number(2)) if columns == 1 else None

        def direct(x: Value) -> None:
            self._multiply(x, self._columns([self._weights(panel) for panel in panels], half), steps, tiles, once=True)

        def unpacking(x: Value) -> None:
            def some(step: Value, _: list[Value]) -> list[Value]:
                end = code.least(build.add(step, code.number(AT_ONCE)), steps)
                unpacked = [self._unpacked(panel, (step, end), panels, half) for panel in panels]
                here = code.at(x, build.mul(step, code.number(TILE_BYTES)), I8)
                self._multiply(here, self._columns(unpacked, half), build.sub(end, step), tiles)
                return []

            code.loop(code.number(0), steps, AT_ONCE, [], some)

        return self._summed(code.number(0), column, (tiles, columns), direct if self._form is None else unpacking)

    def _many(self, first: Value, last: Value) -> None:
        """Blocks of rows, panel by panel: two tiles of rows at a time, then one that is left."""
        code, build, at = self._code, self._code.build, self._at

        def block(row: Value, _: list[Value]) -> list[Value]:
            end = code.least(build.add(row, code.number(_BLOCK)), at["rows"])
            tiles = build.sdiv(build.add(build.sub(end, row), code.number(ROWS - 1)), code.number(ROWS))
            odd = build.add(row, build.mul(build.sdiv(tiles, code.number(2)), code.number(2 * ROWS)))

            def panel(panel: Value, _: list[Value]) -> list[Value]:
                everything = code.number(0), at["steps"]
                whole = self._form is None
                columns = self._columns([self._weights(panel) if whole else self._unpacked(panel, everything, [panel])])

                def tiles(at_row: Value, count: int) -> list[Value]:
                    def add(x: Value) -> None:
                        self._multiply(x, columns, at["steps"], count)

                    return self._summed(at_row, build.mul(panel, code.number(2)), (count, 2), add)

                code.loop(row, odd, 2 * ROWS, [], lambda at_row, _: tiles(at_row, 2))
                return code.loop(odd, end, ROWS, [], lambda at_row, _: tiles(at_row, 1))

            return code.loop(first, last, 1, [], panel)

        code.loop(code.number(0), at["rows"], _BLOCK, [], block)

    def _columns(self, panels: Sequence[Value], half: Value | None = None) -> list[Value]:
        """Where the tiles of their columns begin; of one panel only column ``half``, if given."""
        code = self._code
        halves = [code.number(0), code.number(1)] if half is None else [half]
        return [code.at(each, code.build.mul(i, code.number(TILE_BYTES)), I8) for each in panels for i in halves]

    def _summed(self, row: Value, column: Value, shape: tuple[int, int], add: Callable[[Value], None]) -> list[Value]:
        """Tiles of rows and columns, ``shape``, from ``row`` and column ``column`` of tiles on: what ``add`` sums of
        the rows' numbers is written.
        """
        code, build, at = self._code, self._code.build, self._at
        tiles, columns = shape
        first = build.mul(build.sdiv(row, code.number(ROWS)), self._steps_bytes)
        for number in range(tiles * columns):
            self._tile("tilezero", [number])
        add(code.at(code.pointer(at["narrow"]), first, I8))
        for number in range(tiles * columns):
            down, right = divmod(number, columns)
            place = code.at(self._sums, code.number((down * ROWS * columns + right) * ROWS), F32)
            self._tile("tilestored64", [number, place, code.number(4 * ROWS * columns)])
        rows = code.least(code.number(tiles * ROWS), build.sub(at["rows"], row))
        width = min(PANEL, columns * ROWS)
        for begin in range(0, columns * ROWS, width):
            output = build.add(build.mul(column, code.number(ROWS)), code.number(begin))
            self._write((row, rows), (output, width), (begin, columns * ROWS))
        return []

    def _multiply(self, x: Value, columns: Sequence[Value], steps: Value, tiles: int, once: bool = False) -> None:
        """Add so many steps of ``tiles`` of rows at ``x`` times those of ``columns``: sums are the first tiles, rows
        the next, weights the last two by turns, or the last one where so many rows are loaded anew for each column.
        Weights that are read ``once`` come from memory, so those of the panels behind are asked for meanwhile: tiles
        are loaded too few at a time to hide what that takes.
        """
        code, build = self._code, self._code.build
        line, sums = code.number(2 * STEP), tiles * len(columns)
        stay = sums + tiles < _TILES - 1
        weights = (_TILES - 2, _TILES - 1) if stay else (_TILES - 1,)
        rows = range(sums, weights[0])
        ahead = build.mul(self._panel_bytes, code.number(-(-len(columns) // 2)))

        def step(index: Value, _: list[Value]) -> list[Value]:
            here = code.at(x, build.mul(index, code.number(TILE_BYTES)), I8)

            def row(number: int) -> int:
                place = code.at(here, build.mul(self._steps_bytes, code.number(number)), I8)
                own = rows[number % len(rows)]
                self._tile("tileloadd64", [own, place, line])
                return own

            held = [row(number) for number in range(tiles)] if stay else []
            for i, column in enumerate(columns):
                place = code.at(column, build.mul(index, code.number(2 * TILE_BYTES)), I8)
                if once:
                    code.prefetch(code.at(place, ahead, I8), TILE_BYTES)
                weight = weights[i % len(weights)]
                self._tile("tileloadd64", [weight, place, line])
                for number in range(tiles):
                    own = held[number] if stay else row(number)
                    self._tile("tdpbf16ps", [number * len(columns) + i, own, weight])
            return []

        code.loop(code.number(0), steps, 1, [], step)

    def _tile(self, name: str, arguments: list[Value | int]) -> None:
        """An instruction on tiles; plain integers are numbers of tiles."""
        values = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in values])
        known = self.module.globals.get(f"llvm.x86.{name}")
        self._code.build.call(known or ir.Function(self.module, kind, f"llvm.x86.{name}"), values)
