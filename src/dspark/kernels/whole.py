"""Products with whole-number sums: weights as they stand in blocks of 4 or 8 bits, rows as whole numbers of 16.

A row's 32 inputs that meet one block become whole numbers, of which the largest is 32512, each written as two signed
digits of 8 bits, and a scale. CPUs made for inference multiply such digits with a block's numbers four by four and add
them up without rounding (VNNI): a step of one row then waits for the weights alone, and a few rows more hide behind
that. So

    y = sum over blocks of d * s * sum((q - c) * x) + (m + c * d) * s * sum(x)

where d * q + m is the weight (d * q for bytes), c the middle of what q counts, x the row's whole numbers and s their
scale. Inner sums are exact, and blocks follow each other in fp32 in their order, so a row's result never depends on
its neighbours. What is rounded is the row alone: to one part in 65,024 of the largest input of a block (bf16: one in
256 of each input).

Legend: T rows, I inputs, O outputs, S blocks of 32 inputs, N outputs of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F16, F32, I8, I16, I32, I64, POINTER, Call, Code, Kernel, Value, can_compile
from dspark.kernels.product import GROUP, Form
from dspark.kernels.program import Rooms

_FOUR = 4  # numbers of 8 bits that an instruction adds up at once
_SUMS = GROUP // _FOUR
_MIDDLE = {Form.NIBBLE: 8, Form.BYTE: 0}  # c; bytes are kept from 0 on, and what that adds is taken away
_KEPT_FROM = {Form.NIBBLE: 0, Form.BYTE: 128}
_DIGITS, _LARGEST = 2, 127 * 256
_RECORD = _DIGITS * GROUP + 16  # bytes of a row's numbers of one block: digits, scale, what sums lose, scaled sum
_AHEAD = 16  # blocks from one to that which is asked for when it is read
_MOST = 512  # rows that are made whole numbers while all columns go by
# Columns that rows meet together where these are few: sums enough to hide how long one takes.
_TOGETHER = {1: 4, 2: 2, 3: 2}
_TABLE = (
    "x",
    "x_row",
    "rows",
    "blocks",
    "weights",
    "scales",
    "columns",
    "out",
    "out_row",
    "bias",
    "more",
    "more_row",
    "counted",
)


@cache
def can_count() -> bool:
    """Whether this CPU has the instructions (AVX512_VNNI, AVX_VNNI)."""
    features = llvm.get_host_cpu_features() if can_compile() else {}
    return any(features.get(each, False) for each in ("avx512vnni", "avxvnni"))


@cache
def column() -> int:
    """N: sums of a register."""
    return 16 if llvm.get_host_cpu_features().get("avx512vnni", False) else 8


class Wholes:
    """A weight in blocks that rows of whole numbers are multiplied with, and its bias; used as ``Panels`` are."""

    def __init__(
        self,
        form: Form,
        numbers_OI: Tensor,
        scales: Sequence[Tensor],
        outputs: int,
        bias_O: Tensor | None = None,
    ) -> None:
        """``numbers_OI`` uint8 of 0 to 15 or int8, ``scales`` d (and m) ``[O, S]`` fp16, outputs in whole panels;
        ``outputs``: how many there are really.
        """
        self._form = form
        self.outputs, (self.padded, self.width) = outputs, numbers_OI.shape
        kept = (numbers_OI.to(torch.int16) + _KEPT_FROM[form]).to(torch.uint8)
        parts = kept.view(-1, column(), self.width // _FOUR, _FOUR).transpose(1, 2)  # column, four, output, of the four
        if form is Form.NIBBLE:
            parts = parts[:, ::2] | parts[:, 1::2] << 4
        self._numbers = parts.contiguous()
        by_kind = [scale.view(-1, column(), scale.shape[1]).transpose(1, 2) for scale in scales]
        self._scales = torch.stack(by_kind, dim=2).contiguous()  # column, block, d or m, output
        self._zeros = torch.zeros(self.padded)
        short = self.padded - outputs
        self._bias = self._zeros if bias_O is None else torch.nn.functional.pad(bias_O.float(), (0, short))

    @property
    def name(self) -> str:
        """Of the form that the weight is kept in."""
        return self._form.value

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        return self._numbers.nbytes + self._scales.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """``[T, I]`` of any floating dtype to fp32 ``[T, O]``."""
        x_TI = x_TI.float().contiguous()
        out_TO = torch.empty(len(x_TI), self.padded)
        scratch = self.scratch(len(x_TI))
        kernel, table = self.call(x_TI, out_TO, None, scratch)
        kernel(*table)
        return out_TO if self.padded == self.outputs else out_TO[:, : self.outputs]

    def scratch(self, rows: int) -> Tensor:
        """Room for that many rows in whole numbers."""
        return torch.empty(rows, self._counted_bytes, dtype=torch.uint8)

    def shared_call(self, rooms: Rooms, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None) -> Call:
        """``call`` with scratch that programs share."""
        room = rooms.room("whole numbers", self._counted_bytes, len(x_TI), torch.uint8)
        return self.call(x_TI, out_TO, more_TO, room)

    def call(self, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None, scratch: Tensor) -> Call:
        """``Panels.call``, of rows in whole numbers."""
        x = x_TI.data_ptr(), self.width, len(x_TI), self.width // GROUP
        weights = self._numbers.data_ptr(), self._scales.data_ptr(), len(self._numbers)
        out = out_TO.data_ptr(), self.padded, self._bias.data_ptr()
        more = (self._zeros.data_ptr(), 0) if more_TO is None else (more_TO.data_ptr(), self.padded)
        return _kernel(self._form, column()), (*x, *weights, *out, *more, scratch.data_ptr())

    @property
    def _counted_bytes(self) -> int:
        return self.width // GROUP * _RECORD


@cache
def _kernel(form: Form, lanes: int) -> Kernel:
    """Rows times a weight of that form, plus a bias, plus rows of their own; the table is ``_TABLE``."""
    return Kernel(_Product(form, lanes).module, "whole")


class _Product:
    """The function a team of threads runs: together they make rows whole numbers, then each takes its share of the
    columns, and rows go by.
    """

    def __init__(self, form: Form, lanes: int) -> None:
        self.module, self._form, self._lanes = ir.Module(), form, lanes
        self._most, self._together = (8, _TOGETHER) if lanes == 16 else (3, {})  # there are half as many registers
        shapes = {(rows, 1) for rows in range(1, self._most + 1)} | set(self._together.items())
        self._tiles = {shape: _Tile(self.module, form, lanes, *shape).code for shape in sorted(shapes)}
        self._code = code = Code(self.module, "whole", (POINTER,))
        table = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(_TABLE))]
        self._at = dict(zip(_TABLE, table, strict=True))
        self._row_bytes = code.build.mul(self._at["blocks"], code.number(_RECORD))
        self._count_all()
        code.barrier()
        code.shared(self._at["columns"], self._at["rows"], self._share)
        code.build.ret_void()

    def _count_all(self) -> None:
        """A thread's share of all rows' blocks."""
        code, build, at = self._code, self._code.build, self._at
        first, last = code.share(build.mul(at["rows"], at["blocks"]))

        def part(index: Value, carried: list[Value]) -> list[Value]:
            row, block = carried
            here = build.add(build.mul(row, at["x_row"]), build.mul(block, code.number(GROUP)))
            numbers = code.load(code.pointer(at["x"]), here, F32, GROUP)
            there = code.at(code.pointer(at["counted"]), build.mul(index, code.number(_RECORD)), I8)
            _count(code, numbers, there, _MIDDLE[self._form] + _KEPT_FROM[self._form])
            following = build.add(block, code.number(1))
            ends = build.icmp_signed("==", following, at["blocks"])
            following = build.select(ends, code.number(0), following)
            return [build.select(ends, build.add(row, code.number(1)), row), following]

        code.loop(first, last, 1, [build.sdiv(first, at["blocks"]), build.srem(first, at["blocks"])], part)

    def _share(self, first: Value, last: Value) -> None:
        """Columns ``first`` to ``last``, for all rows: some at a time, so that what the rows are stays near."""
        code, build, at = self._code, self._code.build, self._at

        def some(row: Value, _: list[Value]) -> list[Value]:
            rows = code.least(code.number(_MOST), build.sub(at["rows"], row))
            few = [partial(self._few, row, count, first, last) for count in self._together]
            is_few = build.icmp_signed("<=", rows, code.number(len(few)))
            cases: list[Callable[[], object]] = [lambda: self._many(row, rows, first, last), *few]
            code.choose(build.select(is_few, rows, code.number(0)), cases)
            return []

        code.loop(code.number(0), at["rows"], _MOST, [], some)

    def _few(self, row: Value, rows: int, first: Value, last: Value) -> None:
        """So many rows: as many runs of columns side by side, then one by one what is left."""
        code, build, count = self._code, self._code.build, self._together[rows]
        apart = build.sdiv(build.sub(last, first), code.number(count))
        end, whole = build.add(first, apart), build.add(first, build.mul(apart, code.number(count)))
        code.loop(first, end, 1, [], lambda column, _: self._run((rows, count), row, column, apart))
        code.loop(whole, last, 1, [], lambda column, _: self._run((rows, 1), row, column, apart))

    def _many(self, row: Value, rows: Value, first: Value, last: Value) -> None:
        """Column by column in runs of rows as even as can be."""
        code, build = self._code, self._code.build
        runs = build.sdiv(build.add(rows, code.number(self._most - 1)), code.number(self._most))

        def column(at: Value, _: list[Value]) -> list[Value]:
            def run(index: Value, carried: list[Value]) -> list[Value]:
                left = build.sub(runs, index)
                size = build.add(build.sub(rows, carried[0]), build.sub(left, code.number(1)))
                size = build.sdiv(size, left)
                here = build.add(row, carried[0])
                shapes = [(count, 1) for count in range(1, self._most + 1)]
                tiles = [partial(self._run, shape, here, at, code.number(0)) for shape in shapes]
                code.choose(build.sub(size, code.number(1)), tiles)
                return [build.add(carried[0], size)]

            code.loop(code.number(0), runs, 1, [code.number(0)], run)
            return []

        code.loop(first, last, 1, [], column)

    def _run(self, shape: tuple[int, int], row: Value, column: Value, apart: Value) -> list[Value]:
        """One tile from ``row`` and ``column`` on, of columns so far ``apart``."""
        code, build, at = self._code, self._code.build, self._at
        output = build.mul(column, code.number(self._lanes))
        counted = code.at(code.pointer(at["counted"]), build.mul(row, self._row_bytes), I8)
        block = build.mul(column, at["blocks"])
        weights, scales = (
            code.at(code.pointer(at[name]), build.mul(block, code.number(size)), I8)
            for name, size in zip(("weights", "scales"), _block_bytes(self._form, self._lanes), strict=True)
        )
        ends = []
        for name in ("out", "more"):
            stride = at[f"{name}_row"]
            ends += [code.at(code.pointer(at[name]), build.add(build.mul(row, stride), output), F32), stride]
        bias = code.at(code.pointer(at["bias"]), output, F32)
        code.call(self._tiles[shape], [at["blocks"], apart, counted, weights, scales, *ends, bias])
        return []


def _block_bytes(form: Form, lanes: int) -> tuple[int, int]:
    """Bytes of a column's numbers and of its scales, of one block."""
    nibbles = form is Form.NIBBLE
    return GROUP * lanes // (1 + nibbles), 2 * lanes * (1 + nibbles)


def _count(code: Code, numbers: Value, out: Value, middle: int) -> None:
    """A row's ``numbers`` of one block as whole ones, a record at ``out``; sums of what is kept from 0 on lose
    ``middle`` times the sum of all.

    Where one is no number, the scale is none, and with it every result.
    """
    build, whole, wide = code.build, ir.VectorType(I32, GROUP), numbers.type
    bits = build.and_(build.bitcast(numbers, whole), ir.Constant(whole, [0x7FFFFFFF] * GROUP))
    largest = build.bitcast(_reduced(code, "umax", bits), F32)  # of numbers without a sign in the order of their bits
    scale = build.fdiv(largest, ir.Constant(F32, float(_LARGEST)))
    finer = build.fdiv(ir.Constant(F32, float(_LARGEST)), largest)
    nearest = _intrinsic(code, f"rint.v{GROUP}f32", wide, [build.fmul(numbers, code.splat(finer, GROUP))])
    size = _intrinsic(code, f"fabs.v{GROUP}f32", wide, [nearest])
    sound = build.fcmp_ordered("<=", size, ir.Constant(wide, [float(_LARGEST)] * GROUP))
    found = build.fptosi(build.select(sound, nearest, ir.Constant(wide, [0.0] * GROUP)), whole)
    upper = build.ashr(build.add(found, ir.Constant(whole, [128] * GROUP)), ir.Constant(whole, [8] * GROUP))
    for digit, part in enumerate((upper, found)):  # of a lower digit the byte is what is left
        code.store(build.trunc(part, ir.VectorType(I8, GROUP)), out, code.number(digit * GROUP), I8)
    sum_of_all = _reduced(code, "add", found)
    tail = code.at(out, code.number(_DIGITS * GROUP), I8)
    code.store(scale, tail, code.number(0), F32)
    code.store(build.mul(sum_of_all, ir.Constant(I32, -middle)), tail, code.number(1), I32)
    code.store(build.fmul(build.sitofp(sum_of_all, F32), scale), tail, code.number(2), F32)


class _Tile:
    """A function for ``rows`` rows and so many columns: blocks, columns from one of them to the next, rows in whole
    numbers, weights, scales, results and what is added to them (each with numbers from row to row), bias.
    """

    def __init__(self, module: ir.Module, form: Form, lanes: int, rows: int, columns: int) -> None:
        arguments = (I64, I64, POINTER, POINTER, POINTER, POINTER, I64, POINTER, I64, POINTER)
        self.code = code = Code(module, f"tile_{rows}_{columns}", arguments)
        self._form, self._lanes, self._rows, self._columns = form, lanes, rows, columns
        self._whole, self._wide = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)
        self._blocks, self._apart, self._counted, self._weights, self._scales, *ends = code.function.args
        out, out_row, more, more_row, bias = ends
        self._sizes = _block_bytes(form, lanes)
        none = ir.Constant(self._wide, [0.0] * lanes)
        sums = code.loop(code.number(0), self._blocks, 1, [none] * (rows * columns), self._block)
        build = code.build
        for place, total in enumerate(sums):
            row, column = divmod(place, columns)
            output = build.mul(self._apart, code.number(column * lanes))
            to, of = (build.add(build.mul(each, code.number(row)), output) for each in (out_row, more_row))
            total = build.fadd(total, code.load(bias, output, F32, lanes))
            code.store(build.fadd(total, code.load(more, of, F32, lanes)), out, to, F32)
        build.ret_void()

    def _block(self, block: Value, sums: list[Value]) -> list[Value]:
        """All rows times all columns, of one block more."""
        code, build = self.code, self.code.build
        row_bytes, here = (build.mul(each, code.number(_RECORD)) for each in (self._blocks, block))
        records = [
            code.at(self._counted, build.add(build.mul(row_bytes, code.number(row)), here), I8)
            for row in range(self._rows)
        ]
        tails = [code.at(each, code.number(_DIGITS * GROUP), I8) for each in records]
        found = self._multiplied(block, records, tails)
        following = list(sums)
        for column in range(self._columns):
            scale, offset = self._scale(block, column)
            for row, tail in enumerate(tails):
                place = row * self._columns + column
                by_row = code.splat(code.load(tail, code.number(0), F32), self._lanes)
                upper, lower = found[place]
                whole = build.add(build.shl(upper, ir.Constant(self._whole, [8] * self._lanes)), lower)
                number = build.sitofp(whole, self._wide)
                total = code.fma(number, build.fmul(scale, by_row), following[place])
                if offset is not None:
                    total = code.fma(offset, code.splat(code.load(tail, code.number(2), F32), self._lanes), total)
                following[place] = total
        return following

    def _multiplied(self, block: Value, records: list[Value], tails: list[Value]) -> list[list[Value]]:
        """Sums of each digit, by row and column, of numbers from the middle of what is kept: the lower ones begin with
        what all lose by that. What lies some way behind is asked for meanwhile.
        """
        code = self.code
        none = ir.Constant(self._whole, [0] * self._lanes)
        lost = [code.splat(code.load(tail, code.number(1), I32), self._lanes) for tail in tails]
        found = [[none, lost[row]] for row in range(self._rows) for _ in range(self._columns)]
        columns = [self._place(self._weights, block, column, 0) for column in range(self._columns)]
        for kind, base in enumerate((self._weights, self._scales)):
            for column in range(self._columns):
                ahead = code.number(_AHEAD * self._sizes[kind])
                code.prefetch(code.at(self._place(base, block, column, kind), ahead, I8), self._sizes[kind])
        step = 2 if self._form is Form.NIBBLE else 1
        for four in range(0, _SUMS, step):
            for column, weights in enumerate(columns):
                for which, number in enumerate(self._fours(weights, four // step)):
                    for row, record in enumerate(records):
                        sums = found[row * self._columns + column]
                        for digit in range(_DIGITS):
                            place = code.number(digit * _SUMS + four + which)
                            own = code.splat(code.load(record, place, I32), self._lanes)
                            sums[digit] = self._added(sums[digit], number, own)
        return found

    def _fours(self, weights: Value, index: int) -> list[Value]:
        """A register of weights, four inputs of every output; of nibbles two."""
        code, build = self.code, self.code.build
        kept = code.load(weights, code.number(index * self._lanes), I32, self._lanes)
        if self._form is not Form.NIBBLE:
            return [kept]
        lower = ir.Constant(self._whole, [0x0F0F0F0F] * self._lanes)
        halves = ir.VectorType(I16, 2 * self._lanes)
        upper = build.lshr(build.bitcast(kept, halves), ir.Constant(halves, [4] * 2 * self._lanes))
        return [build.and_(kept, lower), build.and_(build.bitcast(upper, self._whole), lower)]

    def _scale(self, block: Value, column: int) -> tuple[Value, Value | None]:
        """``d`` of a column's block, and ``m + c d`` of nibbles."""
        code, build = self.code, self.code.build
        where = self._place(self._scales, block, column, 1)
        kinds = 2 if self._form is Form.NIBBLE else 1
        kept = [code.load(where, code.number(kind * self._lanes), F16, self._lanes) for kind in range(kinds)]
        scale, *offset = (build.fpext(each, self._wide) for each in kept)
        middle = ir.Constant(self._wide, [float(_MIDDLE[self._form])] * self._lanes)
        return scale, code.fma(middle, scale, offset[0]) if offset else None

    def _place(self, base: Value, block: Value, column: int, kind: int) -> Value:
        """Where a column's block begins."""
        code, build = self.code, self.code.build
        index = build.add(build.mul(build.mul(self._apart, self._blocks), code.number(column)), block)
        return code.at(base, build.mul(index, code.number(self._sizes[kind])), I8)

    def _added(self, sums: Value, weights: Value, row: Value) -> Value:
        name = f"x86.avx512.vpdpbusd.{32 * self._lanes}"
        return _intrinsic(self.code, name, self._whole, [sums, weights, row])


def _reduced(code: Code, how: str, vector: Value) -> Value:
    return _intrinsic(code, f"vector.reduce.{how}.v{vector.type.count}i32", I32, [vector])


def _intrinsic(code: Code, name: str, kind: ir.Type, arguments: list[Value]) -> Value:
    full = f"llvm.{name}"
    known = code.module.globals.get(full)
    function = known or ir.Function(code.module, ir.FunctionType(kind, [each.type for each in arguments]), full)
    return code.build.call(function, arguments)
