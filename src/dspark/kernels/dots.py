"""Products in bf16 on a CPU whose vectors multiply pairs of such numbers and add them up in fp32 (AVX512_BF16).

A register of weights holds one pair of inputs of 16 outputs; each row's own pair is met with it, so that a run of rows
reads every weight once. Twice as many products an instruction as in fp32, from half of the bytes.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

from llvmlite import ir

from dspark.kernels.blocks import BrainType, can_unpack
from dspark.kernels.machine import F32, I8, I32, I64, POINTER, Code, Value, can_compile
from dspark.kernels.narrow import AT_ONCE, PANEL, ROWS, STEP, TILE_BYTES, NarrowProduct
from dspark.kernels.product import Form

# Rows that meet each weight once, and how many panels side by side: one run of weights comes from memory faster than
# two, but one row or two have too few sums by themselves to hide how long one takes.
_FEW = {rows: 2 if rows < 3 else 1 for rows in range(1, 9)}
# Rows of a run where there are more, and panels that it meets together (a thread has room for two that were blocks): so
# many sums, of two registers a panel, stay in registers.
_MOST, _PANELS = 6, 2
_BLOCK = 256  # rows whose bf16 numbers stay in the second cache while all panels go by
_PAIR = 4  # bytes


@cache
def has_dots() -> bool:
    """Whether this CPU has the instructions."""
    return can_compile() and can_unpack()


class DotProduct(NarrowProduct):
    """Rows one behind the other; runs of them go by."""

    def __init__(self, form: Form | None) -> None:
        super().__init__("dots", form, max(_MOST * _PANELS, *(rows * panels for rows, panels in _FEW.items())) * PANEL)

    def _multiply_all(self) -> None:
        many = {(rows, panels) for rows in range(1, _MOST + 1) for panels in range(1, _PANELS + 1)}
        shapes = sorted(many | set(_FEW.items()))
        self._runs = {shape: _Run(self.module, *shape, asks=self._form is None).code for shape in shapes}
        self._code.shared(self._at["panels"], self._at["rows"], self._share)

    def _place(self, row: Value, step: Value) -> Value:
        code, build = self._code, self._code.build
        return build.add(build.mul(row, self._row_bytes), build.mul(step, code.number(2 * STEP)))

    @property
    def _row_bytes(self) -> Value:
        return self._code.build.mul(self._at["steps"], self._code.number(2 * STEP))

    def _share(self, first: Value, last: Value) -> None:
        """Panels ``first`` to ``last``, for all rows: few of them meet each weight once."""
        code, build, rows = self._code, self._code.build, self._at["rows"]

        def many() -> None:
            code.loop(code.number(0), rows, _BLOCK, [], lambda row, _: self._block(row, first, last))

        few = [partial(self._side_by_side, first, last, _FEW[count], partial(self._once, count)) for count in _FEW]
        is_few = build.icmp_signed("<=", rows, code.number(len(few)))
        code.choose(build.select(is_few, rows, code.number(0)), [many, *few])

    def _side_by_side(
        self, first: Value, last: Value, together: int, body: Callable[[Value, int], list[Value]]
    ) -> None:
        """``body(panel, how many)`` for panels ``first`` to ``last``, so many ``together``, then one by one."""
        code, build = self._code, self._code.build
        whole = build.sub(last, build.srem(build.sub(last, first), code.number(together)))
        code.loop(first, whole, together, [], lambda panel, _: body(panel, together))
        if together > 1:
            code.loop(whole, last, 1, [], lambda panel, _: body(panel, 1))

    def _once(self, rows: int, panel: Value, count: int) -> list[Value]:
        """All rows, so many, times ``count`` panels; blocks are written out a few steps at a time, which the cache
        nearest holds.
        """
        code, build, steps = self._code, self._code.build, self._at["steps"]
        panels = [build.add(panel, code.number(i)) for i in range(count)]

        def some(step: Value, _: list[Value]) -> list[Value]:
            end = code.least(build.add(step, code.number(AT_ONCE)), steps)
            places = [self._unpacked(each, (step, end), panels) for each in panels]
            self._add(rows, (code.number(0), step), build.sub(end, step), places)
            return []

        self._clear(rows, count)
        if self._form is None:
            self._add(rows, (code.number(0), code.number(0)), steps, [self._weights(each) for each in panels])
        else:
            code.loop(code.number(0), steps, AT_ONCE, [], some)
        self._written(rows, code.number(0), panel, count)
        return []

    def _block(self, row: Value, first: Value, last: Value) -> list[Value]:
        """A block of rows from ``row`` on times the panels, in runs as even as can be."""
        code, build, at = self._code, self._code.build, self._at
        rows = code.least(code.number(_BLOCK), build.sub(at["rows"], row))
        runs = build.sdiv(build.add(rows, code.number(_MOST - 1)), code.number(_MOST))

        def body(panel: Value, count: int) -> list[Value]:
            panels = [build.add(panel, code.number(i)) for i in range(count)]
            if self._form is None:
                places = [self._weights(each) for each in panels]
            else:
                places = [self._unpacked(each, (code.number(0), at["steps"]), panels) for each in panels]

            def run(index: Value, carried: list[Value]) -> list[Value]:
                left = build.sub(runs, index)
                size = build.sdiv(build.sub(build.add(build.sub(rows, carried[0]), left), code.number(1)), left)
                here = build.add(row, carried[0])
                shapes = [partial(self._run, each, here, panel, places) for each in range(1, _MOST + 1)]
                code.choose(build.sub(size, code.number(1)), shapes)
                return [build.add(carried[0], size)]

            code.loop(code.number(0), runs, 1, [code.number(0)], run)
            return []

        self._side_by_side(first, last, _PANELS, body)
        return []

    def _run(self, rows: int, row: Value, panel: Value, places: Sequence[Value]) -> None:
        """So many rows times whole panels."""
        self._clear(rows, len(places))
        self._add(rows, (row, self._code.number(0)), self._at["steps"], places)
        self._written(rows, row, panel, len(places))

    def _clear(self, rows: int, panels: int) -> None:
        none = ir.Constant(ir.VectorType(F32, PANEL), [0.0] * PANEL)
        for place in range(rows * panels):
            self._code.store(none, self._sums, self._code.number(place * PANEL), F32)

    def _add(self, rows: int, begin: tuple[Value, Value], steps: Value, places: Sequence[Value]) -> None:
        """So many rows from ``(row, step)`` on times so many steps of the panels at ``places``."""
        code = self._code
        x = code.at(code.pointer(self._at["narrow"]), self._place(*begin), I8)
        ahead = [] if self._form else [code.build.mul(self._panel_bytes, code.number(len(places)))]
        code.call(self._runs[rows, len(places)], [steps, x, self._row_bytes, self._sums, *places, *ahead])

    def _written(self, rows: int, row: Value, panel: Value, panels: int) -> None:
        code, build = self._code, self._code.build
        for number in range(panels):
            output = build.mul(build.add(panel, code.number(number)), code.number(PANEL))
            self._write((row, code.number(rows)), (output, PANEL), (number * PANEL, panels * PANEL))


class _Run:
    """A function for ``rows`` rows and so many panels: steps, the first row and bytes from one to the next, sums of all
    rows one behind the other, which are added to, and where each panel begins.
    """

    def __init__(self, module: ir.Module, rows: int, panels: int, asks: bool) -> None:
        arguments = (I64, POINTER, I64, POINTER, *[POINTER] * panels, *[I64] * asks)
        self.code = code = Code(module, f"run_{rows}_{panels}", arguments)
        steps, x, x_row, sums, *weights = code.function.args
        weights, ahead = weights[:panels], weights[panels:]
        columns = 2 * panels
        places = [code.number((row * columns + column) * ROWS) for row in range(rows) for column in range(columns)]
        begun = [code.load(sums, place, F32, ROWS) for place in places]

        def step(index: Value, carried: list[Value]) -> list[Value]:
            found, build = list(carried), code.build
            starts = [
                build.add(build.mul(x_row, code.number(row)), build.mul(index, code.number(2 * STEP)))
                for row in range(rows)
            ]
            mine = [code.at(x, start, I8) for start in starts]
            tiles = [code.at(each, build.mul(index, code.number(2 * TILE_BYTES)), I8) for each in weights]
            for pair in range(STEP // 2):
                own = [code.splat(code.load(each, code.number(pair), I32), ROWS) for each in mine]
                for column in range(columns):
                    place = code.number((column % 2 * TILE_BYTES + pair * _PAIR * ROWS) // _PAIR)
                    weight = code.load(tiles[column // 2], place, I32, ROWS)
                    if ahead:
                        later = code.at(code.at(tiles[column // 2], place, I32), ahead[0], I8)
                        code.prefetch(later, _PAIR * ROWS)
                    for row in range(rows):
                        at = row * columns + column
                        found[at] = self._added(found[at], own[row], weight)
            return found

        ended = code.loop(code.number(0), steps, 1, begun, step)
        for place, total in zip(places, ended, strict=True):
            code.store(total, sums, place, F32)
        code.build.ret_void()

    def _added(self, sums: Value, row: Value, weights: Value) -> Value:
        build, name = self.code.build, "llvm.x86.avx512bf16.dpbf16ps.512"
        pairs = ir.VectorType(BrainType(), 2 * ROWS)
        kind = ir.FunctionType(sums.type, [sums.type, pairs, pairs])
        known = self.code.module.globals.get(name)
        function = known or ir.Function(self.code.module, kind, name)
        return build.call(function, [sums, build.bitcast(row, pairs), build.bitcast(weights, pairs)])
