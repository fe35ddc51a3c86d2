"""Products of rows with a weight in panels, compiled: one function a form.

A panel holds the weights of N outputs (``lanes``), input after input. Every output is one sum over the inputs in
their order, each step one fused multiply and add in fp32; the forms differ only in how a weight is written, and each is
read as the very fp32 number it stands for. So a row's result never depends on its neighbours, nor on the form.

Weights come from memory, and a turn of the loops reads too few of them to hide what that takes: each asks for what lies
some way behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache

from llvmlite import ir

from dspark.kernels.machine import F16, F32, I8, I16, I32, I64, POINTER, Code, Kernel, Value, lanes

GROUP = 32  # inputs that share a scale, as in GGUF's blocks
_STEP = 4  # inputs a turn of the innermost loop, where sums, weights and scales fit the registers; else half of them
_AHEAD = 4096  # bytes from a weight to those that are asked for when it is read
_BLOCK = 96  # rows that stay in the cache nearest but one while the panels go by


class Form(Enum):
    """How a weight is written; every form stands for fp32 numbers."""

    FLOAT = "float32"
    HALF = "float16"
    BRAIN = "bfloat16"
    BYTE = "int8"  # d * q in groups of 32, q of 8 bits: GGUF's Q8_0
    NIBBLE = "int4"  # d * q + m in groups of 32, q of 4 bits: GGUF's Q4_0 and Q4_1

    @property
    def grouped(self) -> bool:
        """Whether groups of inputs share a scale."""
        return self in (Form.BYTE, Form.NIBBLE)

    @property
    def bits(self) -> int:
        """Of a weight, without its scale."""
        return {Form.FLOAT: 32, Form.HALF: 16, Form.BRAIN: 16, Form.BYTE: 8, Form.NIBBLE: 4}[self]


class _Panel:
    """Reads the weights of one panel; ``scales`` are those of the present group."""

    def __init__(self, code: Code, form: Form, weights: Value, scales: Value) -> None:
        self._code, self._form = code, form
        self._weights, self._scales = weights, scales
        self._now: list[Value] = []

    def enter(self, k: Value) -> None:
        """Read the scales of the group that input ``k`` opens."""
        code, count = self._code, lanes()
        kinds = 2 if self._form is Form.NIBBLE else 1
        first = code.build.mul(code.build.udiv(k, code.number(GROUP)), code.number(kinds * count))
        places = [code.build.add(first, code.number(each * count)) for each in range(kinds)]
        wide = ir.VectorType(F32, count)
        self._now = [code.build.fpext(code.load(self._scales, place, F16, count), wide) for place in places]

    def ask(self, k: Value, steps: int) -> None:
        """Ask for what lies ``_AHEAD`` bytes behind so many inputs from ``k`` on."""
        code, size = self._code, lanes() * self._form.bits // 8
        place = code.build.add(code.build.mul(k, code.number(size)), code.number(_AHEAD))
        code.prefetch(code.at(self._weights, place, I8), steps * size)

    def weights(self, k: Value, steps: int) -> Iterator[Value]:
        """Weights of inputs ``k`` to ``k + steps``, a vector each, unpacked when asked for: registers are few.

        ``k`` is even for nibbles.
        """
        if self._form is Form.NIBBLE:
            for step in range(0, steps, 2):
                yield from self._pair(self._next(k, step))
        else:
            for step in range(steps):
                yield self._one(self._next(k, step))

    def _next(self, k: Value, step: int) -> Value:
        return self._code.build.add(k, self._code.number(step))

    def _one(self, k: Value) -> Value:
        code, build, count = self._code, self._code.build, lanes()
        place = build.mul(k, code.number(count))
        wide, whole = ir.VectorType(F32, count), ir.VectorType(I32, count)
        if self._form is Form.FLOAT:
            return code.load(self._weights, place, F32, count)
        if self._form is Form.HALF:
            return build.fpext(code.load(self._weights, place, F16, count), wide)
        if self._form is Form.BRAIN:
            upper = build.zext(code.load(self._weights, place, I16, count), whole)
            return build.bitcast(build.shl(upper, ir.Constant(whole, [16] * count)), wide)
        number = build.sitofp(build.sext(code.load(self._weights, place, I8, count), whole), wide)
        return build.fmul(number, self._now[0])

    def _pair(self, k: Value) -> Iterator[Value]:
        code, build, count = self._code, self._code.build, lanes()
        wide, whole = ir.VectorType(F32, count), ir.VectorType(I32, count)
        place = build.mul(build.lshr(k, code.number(1)), code.number(count))
        both = build.zext(code.load(self._weights, place, I8, count), whole)
        low = build.and_(both, ir.Constant(whole, [15] * count))
        yield code.fma(build.sitofp(low, wide), *self._now)
        high = build.lshr(both, ir.Constant(whole, [4] * count))
        yield code.fma(build.sitofp(high, wide), *self._now)


# Panels of a tile of few rows: sums enough to hide the latency of an addition, scales few enough for the registers.
_PANELS = {
    Form.FLOAT: {1: 4, 2: 2, 3: 2},
    Form.HALF: {1: 4, 2: 2},
    Form.BRAIN: {1: 4, 2: 2},
    Form.BYTE: {1: 2},
    Form.NIBBLE: {1: 1},
}
_Body = Callable[[Value, int, list[Value]], list[Value]]


def direct_rows(form: Form) -> int:
    """Rows up to which a panel is read as it is; for more it is written out as fp32 first, once for all of them."""
    few = {Form.FLOAT: sys.maxsize, Form.NIBBLE: 8}
    many = {Form.FLOAT: sys.maxsize, Form.NIBBLE: 24}
    return many.get(form, 48) if lanes() == 32 else few.get(form, 6)


def _tile_rows() -> int:
    """Rows of a tile at most: with AVX-512 12 x 2 sums, 2 weights, scales and a broadcast fill 32 registers, with AVX2
    6 x 2 sums, 2 weights and a broadcast 16.
    """
    return 12 if lanes() == 32 else 6


def _inputs(
    code: Code, form: Form, panels: list[_Panel], width: Value, sums: list[Value], body: _Body, step: int = _STEP
) -> list[Value]:
    """Run ``body(first input, how many, sums)`` over all inputs in their order, ``step`` at a time."""

    def steps(start: Value, end: Value, size: int, carried: list[Value]) -> list[Value]:
        return code.loop(start, end, size, carried, lambda k, values: body(k, size, values))

    if not form.grouped:
        even = code.build.and_(width, code.number(-step))
        return steps(even, width, 1, steps(code.number(0), even, step, sums))

    def group(k: Value, values: list[Value]) -> list[Value]:
        for panel in panels:
            panel.enter(k)
        return steps(k, code.build.add(k, code.number(GROUP)), step, values)

    return code.loop(code.number(0), width, GROUP, sums, group)


# Arguments of a tile: inputs, rows (and floats from row to row), weights (bytes from panel to panel), scales (the
# same), results (floats from row to row), bias, what is added to the results (floats from row to row).
_TILE = (I64, POINTER, I64, POINTER, I64, POINTER, I64, POINTER, I64, POINTER, POINTER, I64)


def _tile(module: ir.Module, form: Form, rows: int, count: int, cached: bool = False) -> Code:
    """A function for ``rows`` rows and ``count`` panels; ``cached``: the weights are near already."""
    code = Code(module, f"{form.value}_{rows}_{count}{'_cached' if cached else ''}", _TILE)
    build, size = code.build, lanes()
    width, x, x_row, weights, panel_bytes, scales, scale_bytes, out, out_row, bias, more, more_row = code.function.args
    sources = [code.at(x, build.mul(x_row, code.number(row)), F32) for row in range(rows)]
    panels = []
    for index in range(count):
        where = code.at(weights, build.mul(panel_bytes, code.number(index)), I8)
        panels.append(_Panel(code, form, where, code.at(scales, build.mul(scale_bytes, code.number(index)), I8)))

    def body(k: Value, steps: int, sums: list[Value]) -> list[Value]:
        if not cached:
            for panel in panels:
                panel.ask(k, steps)
        sums, following = list(sums), [panel.weights(k, steps) for panel in panels]
        for step in range(steps):
            at = build.add(k, code.number(step))
            weights = [next(each) for each in following]
            for place, total in enumerate(sums):
                row, index = divmod(place, count)
                if not index:
                    spread = code.splat(code.load(sources[row], at, F32), size)
                sums[place] = code.fma(spread, weights[index], total)
        return sums

    zero = ir.Constant(ir.VectorType(F32, size), [0.0] * size)
    narrow = rows > (4 if form is Form.NIBBLE else 8)
    sums = _inputs(code, form, panels, width, [zero] * (rows * count), body, _STEP // 2 if narrow else _STEP)
    for row in range(rows):
        for index in range(count):
            column = code.number(index * size)
            from_row, to_row = (build.add(build.mul(each, code.number(row)), column) for each in (more_row, out_row))
            total = build.fadd(sums[row * count + index], code.load(bias, column, F32, size))
            code.store(build.fadd(total, code.load(more, from_row, F32, size)), out, to_row, F32)
    build.ret_void()
    return code


def _spread(module: ir.Module, form: Form) -> Code:
    """A function that writes a panel's weights as fp32: weights, scales, destination, inputs."""
    code = Code(module, f"{form.value}_spread", (POINTER, POINTER, POINTER, I64))
    weights, scales, destination, width = code.function.args
    panel = _Panel(code, form, weights, scales)

    def body(k: Value, steps: int, nothing: list[Value]) -> list[Value]:
        panel.ask(k, steps)
        for step, weight in enumerate(panel.weights(k, steps)):
            place = code.build.mul(code.build.add(k, code.number(step)), code.number(lanes()))
            code.store(weight, destination, place, F32)
        return nothing

    _inputs(code, form, [panel], width, [], body)
    code.build.ret_void()
    return code


class _Product:
    """The function a team of threads runs: each takes its share of the panels, blocks of rows go by."""

    def __init__(self, form: Form) -> None:
        self.module, self._rows = ir.Module(), _tile_rows()
        counts = range(1, self._rows + 1)
        shapes = {(rows, 1) for rows in counts} | set(_PANELS[form].items())
        self._tiles = {shape: _tile(self.module, form, *shape) for shape in sorted(shapes)}
        self._form = form
        if form is not Form.FLOAT:
            self._spread = _spread(self.module, form)
            self._plain = {rows: _tile(self.module, Form.FLOAT, rows, 1, cached=True) for rows in counts}
        self._code = code = Code(self.module, "product", (POINTER,))
        table = [code.load(code.function.args[0], code.number(index), I64) for index in range(len(_TABLE))]
        self._at = dict(zip(_TABLE, table, strict=True))
        code.shared(self._at["panels"], self._at["rows"], self._panels)
        code.build.ret_void()

    def _panels(self, first: Value, last: Value) -> None:
        """Those of a thread, for all rows."""
        self._first, self._last = first, last
        self._code.loop(self._code.number(0), self._at["rows"], _BLOCK, [], lambda row, _: self._block(row))

    def _block(self, row: Value) -> list[Value]:
        """All panels of this thread for the rows from ``row`` on."""
        code, build, at = self._code, self._code.build, self._at
        rows = code.least(code.number(_BLOCK), build.sub(at["rows"], row))
        self._x = self._address(at["x"], build.mul(row, at["x_row"]), F32)
        self._out = self._address(at["out"], build.mul(row, at["out_row"]), F32)
        self._more = self._address(at["more"], build.mul(row, at["more_row"]), F32)
        most = max(_PANELS[self._form])
        cases = [lambda: self._many(rows)]
        cases += [lambda count=count: self._few(count) for count in range(1, most + 1)]  # type: ignore[misc]
        few = build.icmp_signed("<=", rows, code.number(most))
        code.choose(build.select(few, rows, code.number(0)), cases)
        return []

    def _few(self, rows: int) -> None:
        """Tiles of several panels, and what is left one by one."""
        code, count = self._code, _PANELS[self._form][rows]
        whole = code.build.srem(code.build.sub(self._last, self._first), code.number(count))
        whole = code.build.sub(self._last, whole)
        code.loop(self._first, whole, count, [], lambda panel, _: self._run(self._tiles[rows, count], panel))
        code.loop(whole, self._last, 1, [], lambda panel, _: self._run(self._tiles[rows, 1], panel))

    def _many(self, rows: Value) -> None:
        """Panel by panel in chunks of rows, the panel's weights written out first where they serve several chunks."""
        code, build = self._code, self._code.build
        chunks = build.sdiv(build.add(rows, code.number(self._rows - 1)), code.number(self._rows))
        own = {count: self._tiles[count, 1] for count in range(1, self._rows + 1)}
        if self._form is Form.FLOAT:
            code.loop(self._first, self._last, 1, [], lambda panel, _: self._chunks(own, panel, rows, chunks, None))
            return
        scratch = self._address(self._at["scratch"], build.mul(code.team()[0], self._at["scratch_bytes"]), I8)
        with build.if_else(build.icmp_signed("<=", rows, code.number(direct_rows(self._form)))) as (then, otherwise):
            with then:
                code.loop(self._first, self._last, 1, [], lambda panel, _: self._chunks(own, panel, rows, chunks, None))
            with otherwise:
                code.loop(self._first, self._last, 1, [], lambda panel, _: self._written(panel, rows, chunks, scratch))

    def _written(self, panel: Value, rows: Value, chunks: Value, scratch: Value) -> list[Value]:
        self._code.call(self._spread, [*self._places(panel), scratch, self._at["width"]])
        return self._chunks(self._plain, panel, rows, chunks, scratch)

    def _chunks(
        self, tiles: dict[int, Code], panel: Value, rows: Value, chunks: Value, scratch: Value | None
    ) -> list[Value]:
        """One panel, ``chunks`` runs of rows as even as can be."""
        code, build, at = self._code, self._code.build, self._at
        weights, scales = self._places(panel)
        column = build.mul(panel, code.number(lanes()))

        def chunk(index: Value, carried: list[Value]) -> list[Value]:
            done = carried[0]
            left, runs = build.sub(rows, done), build.sub(chunks, index)
            size = build.sdiv(build.add(left, build.sub(runs, code.number(1))), runs)
            x = code.at(self._x, build.mul(done, at["x_row"]), F32)
            sources = [scratch or weights, code.number(0), scales, code.number(0)]
            arguments = [at["width"], x, at["x_row"], *sources, *self._ends(done, column)]
            run = [lambda tile=tile: code.call(tile, arguments) for tile in tiles.values()]
            code.choose(build.sub(size, code.number(1)), run)
            return [build.add(done, size)]

        code.loop(code.number(0), chunks, 1, [code.number(0)], chunk)
        return []

    def _run(self, tile: Code, panel: Value) -> list[Value]:
        """One tile on the block's rows, from ``panel`` on."""
        code, at = self._code, self._at
        weights, scales = self._places(panel)
        column = code.build.mul(panel, code.number(lanes()))
        sources = [weights, at["panel_bytes"], scales, at["scale_bytes"]]
        ends = self._ends(code.number(0), column)
        code.call(tile, [at["width"], self._x, at["x_row"], *sources, *ends])
        return []

    def _ends(self, row: Value, column: Value) -> list[Value]:
        """Where results go and what is added to them, from a row of the block and a column on."""
        code, build, at = self._code, self._code.build, self._at
        out, more = (
            code.at(base, build.add(build.mul(row, stride), column), F32)
            for base, stride in ((self._out, at["out_row"]), (self._more, at["more_row"]))
        )
        return [out, at["out_row"], self._address(at["bias"], column, F32), more, at["more_row"]]

    def _places(self, panel: Value) -> tuple[Value, Value]:
        """Addresses of a panel's weights and scales."""
        at, build = self._at, self._code.build
        weights = self._address(at["weights"], build.mul(panel, at["panel_bytes"]), I8)
        return weights, self._address(at["scales"], build.mul(panel, at["scale_bytes"]), I8)

    def _address(self, base: Value, offset: Value, kind: ir.Type) -> Value:
        return self._code.at(self._code.pointer(base), offset, kind)


_TABLE = (
    "x",
    "x_row",
    "rows",
    "width",
    "weights",
    "panel_bytes",
    "scales",
    "scale_bytes",
    "panels",
    "out",
    "out_row",
    "bias",
    "more",
    "more_row",
    "scratch",
    "scratch_bytes",
)


@cache
def product_kernel(form: Form) -> Kernel:
    """Rows times a weight of that form, plus a bias, plus rows of their own; the table is ``_TABLE``."""
    return Kernel(_Product(form).module, "product")
