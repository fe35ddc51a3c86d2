"""Products in bf16 with fp32 sums on the matrix units of a CPU (AMX).

A tile holds 16 rows of 32 bf16 numbers; each tile of rows makes one of sums with each tile of weights, up to six at a
time. Weights come in panels of 32 outputs, two columns of tiles, in the order in which tiles are loaded: pairs of
inputs side by side, as the units want them. Every output is one sum over its inputs in their order, whatever the other
rows of its tile hold, so a row's result never depends on its neighbours.

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
import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.blocks import Blocks, step_bytes, unpack
from dspark.kernels.machine import F32, I8, I16, I64, POINTER, Call, Code, Kernel, Rooms, Value, can_compile
from dspark.kernels.numbers import brain
from dspark.kernels.product import Form

_ROWS = 16  # of a tile; as many fp32 sums stand in each
_TILES = 8
_STEP = 32  # inputs of a tile
_PANEL = 2 * _ROWS
_TILE_BYTES = 1024
_AT_ONCE = 4  # steps of blocks that are written out before they are multiplied
# Tiles of rows that all weights are read once for, and how many columns of tiles of weights they meet at a time.
_FEW = ((1, 4), (2, 2), (3, 2), (4, 1))
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
_OF_BLOCKS = ("scales", "unpacked")
Scratch = tuple[Tensor, Tensor | None]  # rows in tiles; panels in tiles, where weights are blocks
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
    """A frozen weight ``[O, I]`` rounded to bf16 (beforehand, or ``Blocks`` at every use), and its bias; used as
    ``Panels`` are.
    """

    def __init__(self, weight_OI: Tensor | Blocks, bias_O: Tensor | None = None, outputs: int = 0) -> None:
        """``Blocks`` stand for all outputs of whole panels; ``outputs``: how many there are really."""
        if isinstance(weight_OI, Blocks):
            self._weights: Tensor | Blocks = weight_OI
            self.outputs, self.width, panels = outputs, weight_OI.width, len(weight_OI.numbers)
        else:
            self.outputs, self.width = weight_OI.shape
            assert fits(self.width), self.width
            weights = torch.nn.functional.pad(weight_OI.to(torch.bfloat16), (0, 0, 0, -self.outputs % _PANEL))
            # outputs: panel, tile, column; inputs: step, pair, which of the pair
            parts = weights.view(-1, 2, _ROWS, self.width // _STEP, _STEP // 2, 2)
            self._weights = parts.permute(0, 3, 1, 4, 2, 5).contiguous()
            panels = len(self._weights)
        self.padded = panels * _PANEL
        self._zeros = torch.zeros(self.padded)
        short = self.padded - self.outputs
        self._bias = self._zeros if bias_O is None else torch.nn.functional.pad(bias_O.float(), (0, short))

    @property
    def name(self) -> str:
        """Of the form that the weight is kept in."""
        return self._weights.form.value if isinstance(self._weights, Blocks) else "bfloat16"

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

    def scratch(self, rows: int) -> Scratch:
        """Room for that many rows in tiles, and for panels."""
        return torch.empty(-(-rows // _ROWS) * _ROWS, self.width, dtype=torch.bfloat16), self._unpacked()

    def shared_call(self, rooms: Rooms, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None) -> Call:
        """``call`` with scratch that programs share."""
        tiles = rooms.room("rows in tiles", self.width, -(-len(x_TI) // _ROWS) * _ROWS, torch.bfloat16)
        return self.call(x_TI, out_TO, more_TO, (tiles, rooms.fixed(self._unpacked())))

    def _unpacked(self) -> Tensor | None:
        """Two panels of every thread, where weights are blocks."""
        if not isinstance(self._weights, Blocks):
            return None
        return torch.empty(torch.get_num_threads(), 2 * _PANEL, self.width, dtype=torch.bfloat16)

    def call(self, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None, scratch: Scratch) -> Call:
        """``Panels.call``, with factors rounded to bf16."""
        tiles, unpacked = scratch
        x = x_TI.data_ptr(), self.width, len(x_TI), self.width // _STEP, tiles.data_ptr()
        out = out_TO.data_ptr(), self.padded, self._bias.data_ptr()
        more = (self._zeros.data_ptr(), 0) if more_TO is None else (more_TO.data_ptr(), self.padded)
        panels, weights = self.padded // _PANEL, self._weights
        if not isinstance(weights, Blocks):
            return _kernel(), (*x, weights.data_ptr(), panels, *out, *more)
        assert unpacked is not None
        numbers, scales = weights.addresses
        return _kernel(weights.form), (*x, numbers, panels, *out, *more, scales, unpacked.data_ptr())


@cache
def _kernel(form: Form | None = None) -> Kernel:
    """Rows times panels, plus a bias, plus rows of their own; ``form`` of weights that are blocks. The table is
    ``_TABLE``, and ``_OF_BLOCKS`` behind it.
    """
    assert can_tile(), "this process may not use the units"
    return Kernel(_Product(form).module, "tiles")


class _Product:
    """The function a team of threads runs: together they round the rows and lay them out in tiles, then each takes its
    share of the panels, and blocks of rows go by.
    """

    def __init__(self, form: Form | None) -> None:
        self.module, self._form = ir.Module(), form
        self._code = code = Code(self.module, "tiles", (POINTER,))
        build, names = code.build, (*_TABLE, *(_OF_BLOCKS if form else ()))
        table = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(names))]
        self._at = at = dict(zip(names, table, strict=True))
        self._sums = code.room((_TILES - 2) * _ROWS * _ROWS)
        self._row_tile_bytes = build.mul(at["steps"], code.number(_TILE_BYTES))
        self._panel_bytes = build.mul(at["steps"], code.number(2 * _TILE_BYTES))
        self._lay_out()
        code.barrier()
        self._configure()
        tiles = build.sdiv(build.sub(at["rows"], code.number(1)), code.number(_ROWS))

        def panels(first: Value, last: Value) -> None:
            few = [partial(self._few, first, last, *way) for way in _FEW]
            code.choose(code.least(tiles, code.number(len(few))), [*few, lambda: self._many(first, last)])

        code.shared(at["panels"], at["rows"], panels)
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
                end = code.least(build.add(step, code.number(_AT_ONCE)), steps)
                unpacked = [self._unpacked(panel, (step, end), panels, half) for panel in panels]
                here = code.at(x, build.mul(step, code.number(_TILE_BYTES)), I8)
                self._multiply(here, self._columns(unpacked, half), build.sub(end, step), tiles)
                return []

            code.loop(code.number(0), steps, _AT_ONCE, [], some)

        return self._summed(code.number(0), column, (tiles, columns), direct if self._form is None else unpacking)

    def _many(self, first: Value, last: Value) -> None:
        """Blocks of rows, panel by panel: two tiles of rows at a time, then one that is left."""
        code, build, at = self._code, self._code.build, self._at

        def block(row: Value, _: list[Value]) -> list[Value]:
            end = code.least(build.add(row, code.number(_BLOCK)), at["rows"])
            tiles = build.sdiv(build.add(build.sub(end, row), code.number(_ROWS - 1)), code.number(_ROWS))
            odd = build.add(row, build.mul(build.sdiv(tiles, code.number(2)), code.number(2 * _ROWS)))

            def panel(panel: Value, _: list[Value]) -> list[Value]:
                everything = code.number(0), at["steps"]
                whole = self._form is None
                columns = self._columns([self._weights(panel) if whole else self._unpacked(panel, everything, [panel])])

                def tiles(at_row: Value, count: int) -> list[Value]:
                    def add(x: Value) -> None:
                        self._multiply(x, columns, at["steps"], count)

                    return self._summed(at_row, build.mul(panel, code.number(2)), (count, 2), add)

                code.loop(row, odd, 2 * _ROWS, [], lambda at_row, _: tiles(at_row, 2))
                return code.loop(odd, end, _ROWS, [], lambda at_row, _: tiles(at_row, 1))

            return code.loop(first, last, 1, [], panel)

        code.loop(code.number(0), at["rows"], _BLOCK, [], block)

    def _weights(self, panel: Value) -> Value:
        """Where the tiles of a panel are, two a step."""
        code = self._code
        return code.at(code.pointer(self._at["weights"]), code.build.mul(panel, self._panel_bytes), I8)

    def _columns(self, panels: Sequence[Value], half: Value | None = None) -> list[Value]:
        """Where the tiles of their columns begin; of one panel only column ``half``, if given."""
        code = self._code
        halves = [code.number(0), code.number(1)] if half is None else [half]
        return [code.at(each, code.build.mul(i, code.number(_TILE_BYTES)), I8) for each in panels for i in halves]

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

    def _summed(self, row: Value, column: Value, shape: tuple[int, int], add: Callable[[Value], None]) -> list[Value]:
        """Tiles of rows and columns, ``shape``, from ``row`` and column ``column`` of tiles on: what ``add`` sums of
        the rows' numbers is written.
        """
        code, build, at = self._code, self._code.build, self._at
        tiles, columns = shape
        first = build.mul(build.sdiv(row, code.number(_ROWS)), self._row_tile_bytes)
        for number in range(tiles * columns):
            self._tile("tilezero", [number])
        add(code.at(code.pointer(at["narrow"]), first, I8))
        for number in range(tiles * columns):
            down, right = divmod(number, columns)
            place = code.at(self._sums, code.number((down * _ROWS * columns + right) * _ROWS), F32)
            self._tile("tilestored64", [number, place, code.number(4 * _ROWS * columns)])
        rows = code.least(code.number(tiles * _ROWS), build.sub(at["rows"], row))
        width = min(_PANEL, columns * _ROWS)
        for begin in range(0, columns * _ROWS, width):
            output = build.add(build.mul(column, code.number(_ROWS)), code.number(begin))
            self._write((row, rows), (output, width), (begin, columns * _ROWS))
        return []

    def _multiply(self, x: Value, columns: Sequence[Value], steps: Value, tiles: int, once: bool = False) -> None:
        """Add so many steps of ``tiles`` of rows at ``x`` times those of ``columns``: sums are the first tiles, rows
        the next, weights the last two by turns, or the last one where so many rows are loaded anew for each column.
        Weights that are read ``once`` come from memory, so those of the panels behind are asked for meanwhile: tiles
        are loaded too few at a time to hide what that takes.
        """
        code, build = self._code, self._code.build
        line, sums = code.number(2 * _STEP), tiles * len(columns)
        stay = sums + tiles < _TILES - 1
        weights = (_TILES - 2, _TILES - 1) if stay else (_TILES - 1,)
        rows = range(sums, weights[0])
        ahead = build.mul(self._panel_bytes, code.number(-(-len(columns) // 2)))

        def step(index: Value, _: list[Value]) -> list[Value]:
            here = code.at(x, build.mul(index, code.number(_TILE_BYTES)), I8)

            def row(number: int) -> int:
                place = code.at(here, build.mul(self._row_tile_bytes, code.number(number)), I8)
                own = rows[number % len(rows)]
                self._tile("tileloadd64", [own, place, line])
                return own

            held = [row(number) for number in range(tiles)] if stay else []
            for i, column in enumerate(columns):
                place = code.at(column, build.mul(index, code.number(2 * _TILE_BYTES)), I8)
                if once:
                    code.prefetch(code.at(place, ahead, I8), _TILE_BYTES)
                weight = weights[i % len(weights)]
                self._tile("tileloadd64", [weight, place, line])
                for number in range(tiles):
                    own = held[number] if stay else row(number)
                    self._tile("tdpbf16ps", [number * len(columns) + i, own, weight])
            return []

        code.loop(code.number(0), steps, 1, [], step)

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

    def _tile(self, name: str, arguments: list[Value | int]) -> None:
        """An instruction on tiles; plain integers are numbers of tiles."""
        values = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in values])
        known = self.module.globals.get(f"llvm.x86.{name}")
        self._code.build.call(known or ir.Function(self.module, kind, f"llvm.x86.{name}"), values)
