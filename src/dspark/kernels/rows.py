"""What lies between products, compiled: norms, gates, rotations, searches. One call for several of PyTorch's.

All in fp32 on a CPU; rows are independent of each other. A few rows are done by the calling thread alone, since
waking the others takes longer than the work.

Legend: T tokens, d width, I inner width, N heads of queries, keys and values together, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.kept import KINDS, write_kept
from dspark.kernels.machine import F32, I32, I64, POINTER, Call, Code, Kernel, Value, can_compile
from dspark.kernels.numbers import (
    bits,
    constant,
    exponential,
    from_bits,
    hyperbolic_tangent,
    places,
    square_root,
    total,
)

_LANES = 8
_VECTOR = ir.VectorType(F32, _LANES)
_WAYS = 4  # searches side by side, so that none waits for its own last comparison
_ALONE = 16_384  # numbers up to which the calling thread works alone


def can_row(x: Tensor, width: int) -> bool:
    """Whether these kernels take such rows."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    return plain and width % _LANES == 0 and can_compile()


def norm_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; contiguous."""
    out = torch.empty_like(x)
    run_call(norm_call(x, out, weight, eps), x.numel())
    return out


def norm_call(x: Tensor, out: Tensor, weight: Tensor, eps: float, adds: bool = False) -> Call:
    """``norm_rows`` written to ``out``, whose rows may lie apart, or added to it."""
    width = weight.numel()
    assert out.stride(-1) == 1, "the numbers of a row lie together"
    apart = out.stride(-2) if out.dim() > 1 else width
    return _norm(adds), (x.data_ptr(), out.data_ptr(), x.numel() // width, weight.data_ptr(), width, bits(eps), apart)


def copy_call(x: Tensor, out: Tensor) -> Call:
    """The rows of ``x`` written to ``out``, whose rows may lie apart."""
    width = x.shape[-1]
    assert out.stride(-1) == 1, "the numbers of a row lie together"
    return _copy(), (x.data_ptr(), out.data_ptr(), x.numel() // width, width, out.stride(-2))


def gate_rows(both: Tensor, act: str) -> Tensor:
    """``act(gate) * up`` of ``[..., 2 I]``, the gate before the other."""
    out = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
    run_call(gate_call(both, out, act), out.numel())
    return out


def gate_call(both: Tensor, out: Tensor, act: str) -> Call:
    """``gate_rows`` written to ``out``."""
    width = out.shape[-1]
    return _gate(act), (both.data_ptr(), out.data_ptr(), out.numel() // width, width)


class HeadNorms(NamedTuple):
    """Norms of single heads before they are rotated: weights ``[D]`` of queries' and of keys', and their epsilons."""

    queries: Tensor
    keys: Tensor
    eps: tuple[float, float]


def turn_and_store(
    heads_TND: Tensor,
    rotation_T1C: Tensor,
    rotated: int,
    queries: int,
    rows_T: Tensor,
    both_HSD: Tensor,
    norms: HeadNorms | None = None,
) -> None:
    """Norm (if asked for) and rotate the first ``rotated`` heads in place (``lean.turn``), and copy those behind the
    queries to the cache, rounded where that is bf16.

    ``both_HSD``: keys and values of a layer, head after head; ``rows_T``: where each token's go. The heads of one token
    lie together, tokens may lie apart.
    """
    where = (rotation_T1C.data_ptr(), rows_T.data_ptr())
    run_call(turn_call(heads_TND, rotated, queries, both_HSD, norms, *where), heads_TND.numel())


def turn_call(
    heads_TND: Tensor,
    rotated: int,
    queries: int,
    both_HSD: Tensor,
    norms: HeadNorms | None,
    rotation: int,
    rows: int,
) -> Call:
    """``turn_and_store`` with the addresses of rotations and rows; they are the first two numbers of the table."""
    tokens, heads, width = heads_TND.shape
    assert heads_TND.stride()[1:] == (width, 1), "the heads of a token lie together"
    table = (rotation, rows, heads_TND.data_ptr(), tokens, heads_TND.stride(0), heads, width, rotated, queries)
    normed = (0, 0, 0, 0)
    if norms is not None:
        eps = [bits(each) for each in norms.eps]
        normed = (norms.queries.data_ptr(), norms.keys.data_ptr(), eps[0], eps[1])
    return _turn(both_HSD.dtype), (*table, both_HSD.data_ptr(), both_HSD.stride(0), *normed)


def can_search(logits: Tensor) -> bool:
    """Whether ``first_largest`` takes such rows."""
    return can_row(logits, logits.shape[-1]) and logits.shape[-1] % (_LANES * _WAYS) == 0 and logits.numel() > 0


def first_largest(logits: Tensor) -> Tensor:
    """Index of the largest number of each row ``[..., V]``, the lowest at ties; -1 where that is infinite or
    one is NaN.
    """
    out = torch.empty(logits.shape[:-1], dtype=torch.int64)
    run_call(search_call(logits, out), 0 if out.numel() == 1 else logits.numel())  # a row is never shared
    return out


def search_call(logits: Tensor, out: Tensor) -> Call:
    """``first_largest`` written to ``out``."""
    return _search(), (logits.data_ptr(), out.data_ptr(), out.numel(), logits.shape[-1])


def follow_call(
    found_R: Tensor, support_V: Tensor | None, ids_R: Tensor, table_Vr: Tensor, out_Rr: Tensor, scale: float = 1.0
) -> Call:
    """Ids ``support_V[found_R]`` (those found themselves without a support) and their rows of a table times ``scale``.

    All int64 and fp32, contiguous. -1, for nothing found, is followed as 0: whoever asked looks at ``found_R``.
    """
    support = 0 if support_V is None else support_V.data_ptr()
    given = (found_R.data_ptr(), support, ids_R.data_ptr(), table_Vr.data_ptr(), out_Rr.data_ptr())
    return _follow(), (*given, len(ids_R), table_Vr.shape[1], bits(scale))


def gate_name(act: Callable[[Tensor], Tensor]) -> str | None:
    """Which of the kernels' gates this function is, found by its values."""
    x = torch.linspace(-20, 20, 4000)
    for name, same in (("silu", torch.nn.functional.silu), ("gelu_tanh", _gelu_tanh)):
        if torch.allclose(act(x), same(x), rtol=1e-6, atol=1e-7):
            return name
    return None


def _gelu_tanh(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def run_call(call: Call, numbers: int) -> None:
    """Run it; the calling thread alone where all of its rows hold few numbers."""
    kernel, table = call
    if numbers <= _ALONE:
        kernel.alone(*table)
    else:
        kernel(*table)


def row_kernel(count: int, body: Callable[[Code, list[Value], Value], None], rows_at: int) -> Kernel:
    """``body(code, table, row)`` for the thread's share of the rows; entry ``rows_at`` of the table is their number."""
    module = ir.Module()
    code = Code(module, "rows", (POINTER,))
    table = [code.load(code.function.args[0], code.number(index), I64) for index in range(count)]
    first, end = code.share(table[rows_at])

    def row(index: Value, _: list[Value]) -> list[Value]:
        body(code, table, index)
        return []

    code.loop(first, end, 1, [], row)
    code.build.ret_void()
    return Kernel(module, "rows")


@cache
def _norm(adds: bool) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        source, destination, _, weights, width, eps, apart = table
        x = code.at(code.pointer(source), build.mul(row, width), F32)
        out = code.at(code.pointer(destination), build.mul(row, apart), F32)
        _normed(code, x, out, weights, width, eps, adds)

    return row_kernel(7, body, rows_at=2)


def _normed(code: Code, x: Value, out: Value, weights: Value, width: Value, eps: Value, adds: bool = False) -> None:
    """A row of ``norm_rows``; ``out`` may be ``x``, or is what the row is added to."""
    build = code.build

    def square(k: Value, sums: list[Value]) -> list[Value]:
        number = code.load(x, k, F32, _LANES)
        return [code.fma(number, number, sums[0])]

    zero = ir.Constant(_VECTOR, [0.0] * _LANES)
    (squares,) = code.loop(code.number(0), width, _LANES, [zero], square)
    mean = build.fdiv(total(code, squares), build.sitofp(width, F32))
    root = square_root(code, build.fadd(mean, from_bits(code, eps)))
    inverse = code.splat(build.fdiv(ir.Constant(F32, 1.0), root), _LANES)

    def scale(k: Value, _: list[Value]) -> list[Value]:
        number = build.fmul(code.load(x, k, F32, _LANES), inverse)
        normed = build.fmul(number, code.load(code.pointer(weights), k, F32, _LANES))
        code.store(build.fadd(code.load(out, k, F32, _LANES), normed) if adds else normed, out, k, F32)
        return []

    code.loop(code.number(0), width, _LANES, [], scale)


@cache
def _copy() -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        source, destination, _, width, apart = table
        x = code.at(code.pointer(source), code.build.mul(row, width), F32)
        out = code.at(code.pointer(destination), code.build.mul(row, apart), F32)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            code.store(code.load(x, k, F32, _LANES), out, k, F32)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(5, body, rows_at=2)


@cache
def _gate(act: str) -> Kernel:
    def silu(code: Code, x: Value) -> Value:
        raised = exponential(code, code.build.fneg(x))
        return code.build.fdiv(x, code.build.fadd(constant(1.0, x), raised))

    def gelu_tanh(code: Code, x: Value) -> Value:
        build = code.build
        bent = code.fma(build.fmul(build.fmul(x, x), constant(0.044715, x)), x, x)
        risen = hyperbolic_tangent(code, build.fmul(bent, constant(0.7978845608028654, x)))
        return build.fmul(build.fmul(x, constant(0.5, x)), build.fadd(risen, constant(1.0, x)))

    function = {"silu": silu, "gelu_tanh": gelu_tanh}[act]

    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        source, destination, _, width = table
        gate = code.at(code.pointer(source), build.mul(row, build.add(width, width)), F32)
        up = code.at(gate, width, F32)
        out = code.at(code.pointer(destination), build.mul(row, width), F32)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            value = function(code, code.load(gate, k, F32, _LANES))
            code.store(build.fmul(value, code.load(up, k, F32, _LANES)), out, k, F32)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(4, body, rows_at=2)


@cache
def _turn(dtype: torch.dtype) -> Kernel:
    kind = KINDS[dtype]

    def body(code: Code, table: list[Value], token: Value) -> None:
        build = code.build
        rotation, rows, source, _, stride, heads, width, rotated, queries, cache, cache_head, *norms = table
        own = code.at(code.pointer(source), build.mul(token, stride), F32)
        angles = code.at(code.pointer(rotation), build.mul(token, width), F32)
        row = code.at(code.pointer(cache), build.mul(code.load(code.pointer(rows), token, I64), width), kind)

        def head(index: Value, turns: bool) -> list[Value]:
            numbers = code.at(own, build.mul(index, width), F32)
            if turns:
                query = build.icmp_signed("<", index, queries)
                weights, eps = (build.select(query, *norms[i : i + 2]) for i in (0, 2))
                with build.if_then(build.icmp_signed("!=", weights, code.number(0))):
                    _normed(code, numbers, numbers, weights, width, eps)

            def eight(k: Value, _: list[Value]) -> list[Value]:
                value = code.load(numbers, k, F32, _LANES)
                if turns:
                    value = _turned(code, value, code.load(angles, k, F32, _LANES))
                    code.store(value, numbers, k, F32)
                with build.if_then(build.icmp_signed(">=", index, queries)):
                    cached = code.at(row, build.mul(build.sub(index, queries), cache_head), kind)
                    write_kept(code, kind, value, cached, k)
                return []

            return code.loop(code.number(0), width, _LANES, [], eight)

        code.loop(code.number(0), rotated, 1, [], lambda index, _: head(index, True))
        code.loop(rotated, heads, 1, [], lambda index, _: head(index, False))

    return row_kernel(15, body, rows_at=3)


@cache
def _search() -> Kernel:
    whole = ir.VectorType(I32, _LANES)

    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        source, destination, _, width = table
        numbers = code.at(code.pointer(source), build.mul(row, width), F32)

        def look(k: Value, kept: list[Value]) -> list[Value]:
            best, where, here, odd = kept[:_WAYS], kept[_WAYS : 2 * _WAYS], kept[-2], kept[-1]
            for way in range(_WAYS):
                number = code.load(numbers, build.add(k, code.number(way * _LANES)), F32, _LANES)
                larger = build.fcmp_ordered(">", number, best[way])
                best[way] = build.select(larger, number, best[way])
                where[way] = build.select(larger, here, where[way])
                odd = build.or_(odd, build.sext(build.fcmp_unordered("uno", number, number), whole))
            return [*best, *where, build.add(here, ir.Constant(whole, [1] * _LANES)), odd]

        least = ir.Constant(_VECTOR, [-math.inf] * _LANES)
        nothing = ir.Constant(whole, [0] * _LANES)
        first = [least] * _WAYS + [nothing] * (_WAYS + 2)
        kept = code.loop(code.number(0), width, _LANES * _WAYS, first, look)
        best: tuple[Value, Value] | None = None
        broken = ir.Constant(ir.IntType(1), 0)
        for lane in range(_LANES):
            place = ir.Constant(I32, lane)
            broken = build.or_(broken, build.trunc(build.extract_element(kept[-1], place), ir.IntType(1)))
            for way in range(_WAYS):
                number = build.extract_element(kept[way], place)
                turn = build.zext(build.extract_element(kept[_WAYS + way], place), I64)
                index = build.add(build.mul(turn, code.number(_LANES * _WAYS)), code.number(way * _LANES + lane))
                best = (number, index) if best is None else _better(code, best, (number, index))
        assert best is not None
        for sign, infinity in (("<", math.inf), (">", -math.inf)):
            broken = build.or_(broken, build.not_(build.fcmp_ordered(sign, best[0], ir.Constant(F32, infinity))))
        code.store(build.select(broken, code.number(-1), best[1]), code.pointer(destination), row, I64)

    return row_kernel(4, body, rows_at=2)


@cache
def _follow() -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        found, support, ids, source, destination, _, width, scale = table
        index = code.load(code.pointer(found), row, I64)
        index = build.select(build.icmp_signed("<", index, code.number(0)), code.number(0), index)
        code.store(index, code.pointer(ids), row, I64)
        with build.if_then(build.icmp_signed("!=", support, code.number(0))):
            code.store(code.load(code.pointer(support), index, I64), code.pointer(ids), row, I64)
        place = build.mul(code.load(code.pointer(ids), row, I64), width)
        numbers = code.at(code.pointer(source), place, F32)
        out = code.at(code.pointer(destination), build.mul(row, width), F32)
        factor = code.splat(from_bits(code, scale), _LANES)

        def copy(k: Value, _: list[Value]) -> list[Value]:
            code.store(build.fmul(code.load(numbers, k, F32, _LANES), factor), out, k, F32)
            return []

        code.loop(code.number(0), width, _LANES, [], copy)

    return row_kernel(8, body, rows_at=5)


def _better(code: Code, a: tuple[Value, Value], b: tuple[Value, Value]) -> tuple[Value, Value]:
    """The larger number, at ties that of the lower index."""
    build = code.build
    tie = build.and_(build.fcmp_ordered("==", b[0], a[0]), build.icmp_signed("<", b[1], a[1]))
    taken = build.or_(build.fcmp_ordered(">", b[0], a[0]), tie)
    return build.select(taken, b[0], a[0]), build.select(taken, b[1], a[1])


def _turned(code: Code, value: Value, angle: Value) -> Value:
    """Four complex numbers times four: real and imaginary parts are neighbours."""
    build = code.build
    even, odd = [i - i % 2 for i in range(_LANES)], [i - i % 2 + 1 for i in range(_LANES)]
    swapped = places(code, value, [i + 1 - 2 * (i % 2) for i in range(_LANES)])
    signs = ir.Constant(_VECTOR, [-1.0, 1.0] * (_LANES // 2))
    crossed = build.fmul(build.fmul(swapped, places(code, angle, odd)), signs)
    return code.fma(value, places(code, angle, even), crossed)
