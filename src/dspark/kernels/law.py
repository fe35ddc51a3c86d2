"""From a row of logits to the law it stands for, and from the law to an index: compiled, a row at a time.

Written out with PyTorch a row as wide as a vocabulary is read and written a dozen times or more; here a few times, from
the processor's cache. Everything about a row depends on that row alone.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F32, F64, I32, I64, Call, Code, Kernel, Value
from dspark.kernels.numbers import constant, exponential, largest, total
from dspark.kernels.rows import can_row, row_kernel, run_call

_LANES = 8
_WAYS = 4  # of them side by side, so that none waits for its own last result
_CHUNK = _LANES * _WAYS
_VECTOR = ir.VectorType(F32, _LANES)


def can_make_law(logits_RV: Tensor) -> bool:
    """Whether these kernels take such rows, of logits or of probabilities."""
    return can_row(logits_RV, logits_RV.shape[-1]) and logits_RV.shape[-1] % _CHUNK == 0 and logits_RV.numel() > 0


def law(logits_RV: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """``softmax(logits / temperature)``, cut to the smallest prefix in the order (-p, id) whose mass reaches ``top_p``.

    fp32; a probability below e^-87 of the likeliest is 0. NaN all over a row that holds NaN, +inf or nothing but -inf.
    """
    rows, width = logits_RV.shape
    p_RV = torch.empty_like(logits_RV)
    shapes = torch.tensor([law_shape(temperature, top_p, width)], dtype=torch.float64).expand(rows, -1)
    chunks = law_scratch(rows, width)
    _run(law_call(logits_RV, p_RV, shapes, chunks), rows, width)
    return p_RV


def law_shape(temperature: float, top_p: float, width: int) -> tuple[float, float, float]:
    """What a row's law is made with, as ``law_call`` reads it."""
    # Smaller ones have together less than half of what the prefix may lack, so it holds none of them; where that is
    # little, rounding counts as well, and all are looked at.
    cutoff = (1.0 - top_p) / (2 * width) if top_p < 0.999 else 0.0
    return 1.0 / temperature, top_p, cutoff


def law_scratch(rows: int, width: int) -> Tensor:
    """Room for what ``law_call`` notes."""
    return torch.empty(rows * (width // _CHUNK), dtype=torch.int64)


def law_call(logits_RV: Tensor, p_RV: Tensor, shape_R3: Tensor, chunks: Tensor) -> Call:
    """``law`` written to ``p_RV``, each row with its own ``law_shape``, float64, whose rows may lie anywhere."""
    rows, width = logits_RV.shape
    shapes = shape_R3.data_ptr(), shape_R3.stride(0)
    return _law(), (logits_RV.data_ptr(), p_RV.data_ptr(), rows, width, *shapes, chunks.data_ptr())


def invert_law(p_RV: Tensor, u_R: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative probability exceeds ``u`` (float64) of the row's mass; and that mass.

    Sums are float64. Never an index of probability 0 in a row whose mass is positive.
    """
    rows, width = p_RV.shape
    ids_R, mass_R = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float64)
    u_R = u_R.contiguous()
    _run(invert_call(p_RV, u_R, ids_R, mass_R), rows, width)
    return ids_R, mass_R


def invert_call(p_RV: Tensor, u_R: Tensor, ids_R: Tensor, mass_R: Tensor) -> Call:
    """``invert_law`` written to ``ids_R`` and ``mass_R``."""
    rows, width = p_RV.shape
    return _invert(), (p_RV.data_ptr(), u_R.data_ptr(), rows, width, ids_R.data_ptr(), mass_R.data_ptr())


def masses(logits_RV: Tensor) -> Tensor:
    """``sum(exp(logits - max))`` of each row, ``[R]``: the reciprocal of its largest probability."""
    rows, width = logits_RV.shape
    mass_R = logits_RV.new_empty(rows)
    _run(mass_call(logits_RV, mass_R), rows, width)
    return mass_R


def mass_call(logits_RV: Tensor, mass_R: Tensor) -> Call:
    """``masses`` written to ``mass_R``."""
    rows, width = logits_RV.shape
    return _mass(), (logits_RV.data_ptr(), mass_R.data_ptr(), rows, width)


def _run(call: Call, rows: int, width: int) -> None:
    run_call(call, 0 if rows == 1 else rows * width)  # a row is never shared


@cache
def _law() -> Kernel:
    return row_kernel(7, _law_row, rows_at=2)


@cache
def _mass() -> Kernel:
    return row_kernel(4, _mass_row, rows_at=2)


@cache
def _invert() -> Kernel:
    return row_kernel(6, _invert_row, rows_at=2)


def _law_row(code: Code, table: list[Value], row: Value) -> None:
    build = code.build
    logits, out, _, width, shapes, stride, chunks = table
    place = build.mul(row, width)
    x, p = (code.at(code.pointer(each), place, F32) for each in (logits, out))
    shape = code.at(code.pointer(shapes), build.mul(row, stride), F64)
    inverse, top_p, cutoff = (code.load(shape, code.number(index), F64) for index in range(3))
    _softmax(code, x, p, width, build.fptrunc(inverse, F32))
    with build.if_then(build.fcmp_ordered("<", top_p, ir.Constant(F64, 1.0))):
        mine = code.at(code.pointer(chunks), build.mul(row, build.udiv(width, code.number(_CHUNK))), I64)
        _Nucleus(code, p, width, mine).cut(top_p, build.fptrunc(cutoff, F32))


def _mass_row(code: Code, table: list[Value], row: Value) -> None:
    build = code.build
    logits, masses, _, width = table
    x = code.at(code.pointer(logits), build.mul(row, width), F32)
    top = _top(code, x, width)

    def raised(k: Value, mass: Value) -> Value:
        return build.fadd(mass, exponential(code, build.fsub(_read(code, x, k), top)))

    mass = total(code, reduce(build.fadd, _over(code, width, 0.0, raised)))
    code.store(mass, code.pointer(masses), row, F32)


def _top(code: Code, x: Value, width: Value) -> Value:
    """The largest number of a row, in every place of a vector."""
    seen = _over(code, width, -math.inf, lambda k, best: largest(code, best, _read(code, x, k)))
    return code.splat(largest(code, reduce(lambda a, b: largest(code, a, b), seen)), _LANES)


def _softmax(code: Code, x: Value, p: Value, width: Value, inverse: Value) -> None:
    build = code.build
    top = _top(code, x, width)
    sharpness = code.splat(inverse, _LANES)

    def raised(k: Value, mass: Value) -> Value:
        value = exponential(code, build.fmul(build.fsub(_read(code, x, k), top), sharpness))
        code.store(value, p, k, F32)
        return build.fadd(mass, value)

    _scale(code, p, width, total(code, reduce(build.fadd, _over(code, width, 0.0, raised))))


def _scale(code: Code, p: Value, width: Value, mass: Value, least: Value | None = None) -> None:
    """Divide by ``mass``; what is below ``least`` becomes 0."""
    build = code.build
    factor = code.splat(build.fdiv(ir.Constant(F32, 1.0), mass), _LANES)
    floor = None if least is None else code.splat(least, _LANES)

    def scaled(k: Value, carried: Value) -> Value:
        value = _read(code, p, k)
        kept = build.fmul(value, factor)
        if floor is not None:
            kept = build.select(build.fcmp_ordered(">=", value, floor), kept, constant(0.0, kept))
        code.store(kept, p, k, F32)
        return carried

    _over(code, width, 0.0, scaled)


class _Nucleus:
    """Cuts a row to its likeliest tokens: the least probability that stays is found by halving an interval of fp32
    numbers (ordered as their bits are), over those chunks of the row that can hold it.
    """

    def __init__(self, code: Code, p: Value, width: Value, chunks: Value) -> None:
        self._code, self._p, self._width, self._chunks = code, p, width, chunks

    def cut(self, top_p: Value, cutoff: Value) -> None:
        """Keep the smallest prefix in the order (-p, id) whose mass reaches ``top_p``, all where rounding keeps a row
        below it; nothing in it is smaller than ``cutoff``.
        """
        code, build = self._code, self._code.build
        count, most = self._collect(cutoff)
        with build.if_then(build.fcmp_ordered(">=", self._mass(count, cutoff), top_p)):
            low = self._last(count, cutoff, most, top_p)  # positive: zeros add nothing
            threshold = build.bitcast(low, F32)
            above = self._mass(count, build.bitcast(build.add(low, ir.Constant(I32, 1)), F32))
            missing = build.fdiv(build.fsub(top_p, above), build.fpext(threshold, F64))
            self._drop_ties(count, threshold, missing)
            kept = build.fptrunc(self._mass(count, threshold), F32)
            _scale(code, self._p, self._width, kept, threshold)

    def _collect(self, least: Value) -> tuple[Value, Value]:
        """Note the chunks that hold a positive number of at least ``least``; how many, and the largest number."""
        code, build = self._code, self._code.build

        def look(k: Value, carried: list[Value]) -> list[Value]:
            count, most = carried
            here = reduce(lambda a, b: largest(code, a, b), self._vectors(k))
            best = largest(code, here)
            code.store(k, self._chunks, count, I64)
            holds = build.and_(
                build.fcmp_ordered(">=", best, least), build.fcmp_ordered(">", best, ir.Constant(F32, 0))
            )
            larger = build.fcmp_ordered(">", best, most)
            return [build.add(count, build.zext(holds, I64)), build.select(larger, best, most)]

        first = [code.number(0), ir.Constant(F32, 0.0)]
        count, most = code.loop(code.number(0), self._width, _CHUNK, first, look)
        return count, most

    def _mass(self, count: Value, least: Value) -> Value:
        """float64 sum of all numbers of at least ``least``."""
        build, floor = self._code.build, self._code.splat(least, _LANES)

        def some(value: Value) -> Value:
            kept = build.select(build.fcmp_ordered(">=", value, floor), value, constant(0.0, value))
            return build.fpext(kept, ir.VectorType(F64, _LANES))

        return self._summed(count, some)

    def _summed(self, count: Value, part: Callable[[Value], Value]) -> Value:
        code, build = self._code, self._code.build
        wide = ir.VectorType(F64, _LANES)

        def chunk(index: Value, sums: list[Value]) -> list[Value]:
            k = code.load(self._chunks, index, I64)
            return [build.fadd(a, part(b)) for a, b in zip(sums, self._vectors(k), strict=True)]

        sums = code.loop(code.number(0), count, 1, [ir.Constant(wide, [0.0] * _LANES)] * _WAYS, chunk)
        return total(code, reduce(build.fadd, sums))

    def _last(self, count: Value, least: Value, most: Value, top_p: Value) -> Value:
        """Bits of the largest number whose and whose betters' mass reaches ``top_p``, as that of ``least`` does."""
        code, build = self._code, self._code.build
        low = build.bitcast(least, I32)
        high = build.add(build.bitcast(most, I32), ir.Constant(I32, 1))

        def halve(_: Value, ends: list[Value]) -> list[Value]:
            low, high = ends
            middle = build.add(low, build.lshr(build.sub(high, low), ir.Constant(I32, 1)))
            reaches = build.fcmp_ordered(">=", self._mass(count, build.bitcast(middle, F32)), top_p)
            return [build.select(reaches, middle, low), build.select(reaches, high, middle)]

        name, kind = "llvm.ctlz.i32", ir.FunctionType(I32, [I32, ir.IntType(1)])
        known = code.module.globals.get(name) or ir.Function(code.module, kind, name)
        zeros = build.call(known, [build.sub(high, low), ir.Constant(ir.IntType(1), 0)])
        times = build.zext(build.sub(ir.Constant(I32, 32), zeros), I64)
        found: Value = code.loop(code.number(0), times, 1, [low, high], halve)[0]
        return found

    def _drop_ties(self, count: Value, threshold: Value, missing: Value) -> None:
        """Of the tokens of probability ``threshold`` keep ``missing``, rounded up, those of the lowest ids."""
        code, build = self._code, self._code.build
        same, one = code.splat(threshold, _LANES), ir.VectorType(F64, _LANES)

        def tied(value: Value) -> Value:
            return build.uitofp(build.fcmp_ordered("==", value, same), one)

        # The last of n ties is kept while n - 1 < missing.
        some = build.fcmp_ordered(">=", self._summed(count, tied), build.fadd(missing, ir.Constant(F64, 1.0)))
        with build.if_then(some):

            def chunk(index: Value, seen: list[Value]) -> list[Value]:
                first = code.load(self._chunks, index, I64)
                return code.loop(first, build.add(first, code.number(_CHUNK)), 1, seen, token)

            def token(k: Value, seen: list[Value]) -> list[Value]:
                value = code.load(self._p, k, F32)
                ties = build.fcmp_ordered("==", value, threshold)
                late = build.and_(ties, build.fcmp_ordered(">=", seen[0], missing))
                code.store(build.select(late, ir.Constant(F32, 0.0), value), self._p, k, F32)
                return [build.fadd(seen[0], build.uitofp(ties, F64))]

            code.loop(code.number(0), count, 1, [ir.Constant(F64, 0.0)], chunk)

    def _vectors(self, k: Value) -> list[Value]:
        code = self._code
        return [_read(code, self._p, code.build.add(k, code.number(way * _LANES))) for way in range(_WAYS)]


def _invert_row(code: Code, table: list[Value], row: Value) -> None:
    build = code.build
    source, uniforms, _, width, ids, masses = table
    p = code.at(code.pointer(source), build.mul(row, width), F32)

    def read(k: Value, lanes: int) -> Value:
        kind = ir.VectorType(F64, lanes) if lanes > 1 else F64
        return build.fpext(code.load(p, k, F32, lanes), kind)

    found, mass = inverted(code, read, width, code.load(code.pointer(uniforms), row, F64))
    code.store(found, code.pointer(ids), row, I64)
    code.store(mass, code.pointer(masses), row, F64)


def inverted(code: Code, read: Callable[[Value, int], Value], width: Value, u: Value) -> tuple[Value, Value]:
    """Index and mass of ``invert_law`` for the float64 numbers that ``read(first, how many)`` gives."""
    build = code.build
    nothing, none = ir.Constant(F64, 0.0), code.number(-1)

    def summed(k: Value) -> Value:
        values = [read(build.add(k, code.number(way * _LANES)), _LANES) for way in range(_WAYS)]
        return total(code, reduce(build.fadd, values))

    (mass,) = code.loop(
        code.number(0), width, _CHUNK, [nothing], lambda k, carried: [build.fadd(carried[0], summed(k))]
    )
    aim = build.fmul(u, mass)

    def search(first: Value, end: Value, step: int, before: Value, part: Callable[[Value], Value]) -> list[Value]:
        """Where the sum first exceeds ``aim``, or the last place that added something; and the sum before it."""

        def look(k: Value, carried: list[Value]) -> list[Value]:
            at, sum_at, so_far, over = carried
            value = part(k)
            further = build.fadd(so_far, value)
            takes = build.and_(build.icmp_signed("==", over, code.number(0)), build.fcmp_ordered(">", value, nothing))
            passed = build.and_(takes, build.fcmp_ordered(">", further, aim))
            return [
                build.select(takes, k, at),
                build.select(takes, so_far, sum_at),
                further,
                build.or_(over, build.zext(passed, I64)),
            ]

        return code.loop(first, end, step, [none, before, before, code.number(0)], look)

    chunk, before, *_ = search(code.number(0), width, _CHUNK, nothing, summed)
    chunk = build.select(build.icmp_signed("<", chunk, code.number(0)), code.number(0), chunk)
    end = build.add(chunk, code.number(_CHUNK))
    return search(chunk, end, 1, before, lambda k: read(k, 1))[0], mass


def _over(code: Code, width: Value, start: float, body: Callable[[Value, Value], Value]) -> list[Value]:
    """Go over a row, ``_WAYS`` vectors at a time, with a result of each's own."""

    def ways(k: Value, carried: list[Value]) -> list[Value]:
        return [body(code.build.add(k, code.number(way * _LANES)), each) for way, each in enumerate(carried)]

    return code.loop(code.number(0), width, _CHUNK, [ir.Constant(_VECTOR, [start] * _LANES)] * _WAYS, ways)


def _read(code: Code, row: Value, k: Value) -> Value:
    return code.load(row, k, F32, _LANES)
