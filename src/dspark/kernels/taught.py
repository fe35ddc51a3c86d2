"""What lies between the products of a layer that is being trained, compiled: norms, rotations of heads and gates, each
a pass forward and a pass backward.

Numbers come and go as products under autocast have them, bf16 or fp32; everything in between is fp32. Gradients of
weights are summed by each thread over its own share of the rows and then put together, so they are the same in every
run with as many threads.

Legend: N rows, d width, D head size, C = D / 2, I inner width, X threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.kept import KINDS, write_kept
from dspark.kernels.machine import F32, I32, Code, Kernel, Value, can_compile
from dspark.kernels.numbers import bits, constant, exponential, from_bits, square_root, total
from dspark.kernels.rows import row_kernel

_LANES = 16
_VECTOR = ir.VectorType(F32, _LANES)
# The tanh form of gelu is x * sigmoid(steep * (x + bend * x^3)), steep being twice the square root of 2 / pi.
_STEEP, _BEND = 1.5957691216057308, 0.044715


class Angles(NamedTuple):
    """Cosines and sines ``[T, C]``, fp32, of tokens; row n is one of ``heads`` heads of token n / heads, and these
    go round where there are fewer tokens than rows.
    """

    cos: Tensor
    sin: Tensor
    heads: int


def can_teach(x: Tensor, width: int) -> bool:
    """Whether these kernels take rows of ``width`` numbers such as ``x``."""
    plain = x.device.type == "cpu" and x.dtype in KINDS and x.is_contiguous()
    return plain and width % (2 * _LANES) == 0 and x.numel() > 0 and can_compile()


def norm_forward(
    x_Nd: Tensor, weight_d: Tensor, eps: float, angles: Angles | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x^2) + eps) * weight``, rotated by ``angles`` (``nn.rope``), in ``dtype``, and ``[N]``, fp32, by
    which each row was divided, inverted.
    """
    width = weight_d.numel()
    out, inverse_N = torch.empty_like(x_Nd, dtype=dtype), torch.empty(x_Nd.numel() // width)
    kernel = _norm(x_Nd.dtype, dtype, angles is not None)
    given = (each.data_ptr() for each in (x_Nd, out, inverse_N, weight_d))
    kernel(*given, inverse_N.numel(), width, bits(eps), *_numbers(angles))
    return out, inverse_N


def norm_backward(
    grad_Nd: Tensor, x_Nd: Tensor, weight_d: Tensor, inverse_N: Tensor, angles: Angles | None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``norm_forward``'s ``x``, in its dtype, and weight, fp32."""
    width = weight_d.numel()
    out, sums_Xd = torch.empty_like(x_Nd), torch.zeros(torch.get_num_threads(), width)
    kernel = _norm_back(grad_Nd.dtype, x_Nd.dtype, angles is not None)
    given = (each.data_ptr() for each in (grad_Nd, x_Nd, out, inverse_N, weight_d, sums_Xd))
    kernel(*given, inverse_N.numel(), width, *_numbers(angles))
    return out, sums_Xd.sum(dim=0)


def can_gate(act: str) -> bool:
    """Whether there are kernels for this function of a gate, by transformers' name."""
    return act in _ACTS


def gate_forward(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """``act(gate) * up [..., I]``, all of one dtype and contiguous."""
    assert up.is_contiguous() and up.dtype == gate.dtype and up.shape == gate.shape
    out = torch.empty_like(gate)
    _gate(gate.dtype, act)(*(each.data_ptr() for each in (gate, up, out)), *_rows(gate))
    return out


def gate_backward(grad: Tensor, gate: Tensor, up: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up for that of ``gate_forward``'s result."""
    found = torch.empty_like(gate), torch.empty_like(up)
    _gate_back(gate.dtype, act)(*(each.data_ptr() for each in (grad, gate, up, *found)), *_rows(gate))
    return found


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _numbers(angles: Angles | None) -> tuple[int, ...]:
    if angles is None:
        return 0, 0, 1, 1
    assert all(each.is_contiguous() and each.dtype == torch.float32 for each in angles[:2])
    return angles.cos.data_ptr(), angles.sin.data_ptr(), angles.heads, len(angles.cos)


class _Reader:
    """Rows of a kernel, read and written ``_LANES`` numbers at a time, as fp32."""

    def __init__(self, code: Code, dtype: torch.dtype, address: Value, row: Value, width: Value) -> None:
        self._code, self._kind = code, KINDS[dtype]
        self._row = code.at(code.pointer(address), code.build.mul(row, width), self._kind)

    def read(self, k: Value) -> Value:
        kept = self._code.load(self._row, k, self._kind, _LANES)
        if self._kind is F32:
            return kept
        build, whole = self._code.build, ir.VectorType(I32, _LANES)
        return build.bitcast(build.shl(build.zext(kept, whole), ir.Constant(whole, [16] * _LANES)), _VECTOR)

    def write(self, value: Value, k: Value) -> None:
        write_kept(self._code, self._kind, value, self._row, k)


class _Heads:
    """Which numbers of a row go together (of heads that are rotated those half a head apart), and their angles."""

    def __init__(self, code: Code, row: Value, width: Value, table: list[Value], turns: bool) -> None:
        self._code, self._turns, self._width = code, turns, width
        if turns:
            build, (cos, sin, heads, tokens) = code.build, table
            self._half = build.sdiv(width, code.number(2))
            token = build.srem(build.sdiv(row, heads), tokens)
            self._angles = [_Reader(code, torch.float32, each, token, self._half) for each in (cos, sin)]

    def over(self, carried: list[Value], body: Callable[[list[Value], list[Value]], list[Value]]) -> list[Value]:
        """``carried = body(places, carried)`` for all places of a row, one vector's or those of a pair."""
        if not self._turns:
            return self._code.loop(self._code.number(0), self._width, _LANES, carried, lambda k, kept: body([k], kept))
        build = self._code.build
        return self._code.loop(
            self._code.number(0), self._half, _LANES, carried, lambda k, kept: body([k, build.add(k, self._half)], kept)
        )

    def turned(self, values: list[Value], places: list[Value], back: bool = False) -> list[Value]:
        """``values`` of these places, rotated (or back)."""
        if not self._turns:
            return values
        build = self._code.build
        cos, sin = (each.read(places[0]) for each in self._angles)
        sin = build.fneg(sin) if back else sin
        first, second = values
        return [
            self._code.fma(first, cos, build.fneg(build.fmul(second, sin))),
            self._code.fma(second, cos, build.fmul(first, sin)),
        ]


@cache
def _norm(source: torch.dtype, result: torch.dtype, turns: bool) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        given, made, inverses, weights, _, width, eps, *angles = table
        x, out = _Reader(code, source, given, row, width), _Reader(code, result, made, row, width)
        weight = _Reader(code, torch.float32, weights, code.number(0), width)
        heads = _Heads(code, row, width, angles, turns)

        def square(places: list[Value], sums: list[Value]) -> list[Value]:
            for number in map(x.read, places):
                sums = [code.fma(number, number, sums[0])]
            return sums

        (squares,) = heads.over([ir.Constant(_VECTOR, [0.0] * _LANES)], square)
        mean = build.fdiv(total(code, squares), build.sitofp(width, F32))
        root = square_root(code, build.fadd(mean, from_bits(code, eps)))
        inverse = build.fdiv(ir.Constant(F32, 1.0), root)
        code.store(inverse, code.pointer(inverses), row, F32)
        spread = code.splat(inverse, _LANES)

        def scale(places: list[Value], _: list[Value]) -> list[Value]:
            values = [build.fmul(build.fmul(x.read(k), spread), weight.read(k)) for k in places]
            for value, k in zip(heads.turned(values, places), places, strict=True):
                out.write(value, k)
            return []

        heads.over([], scale)

    return row_kernel(11, body, rows_at=4)


@cache
def _norm_back(source: torch.dtype, result: torch.dtype, turns: bool) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        grads, given, made, inverses, weights, sums, _, width, *angles = table
        grad, x = _Reader(code, source, grads, row, width), _Reader(code, result, given, row, width)
        out, weight = (
            _Reader(code, result, made, row, width),
            _Reader(code, torch.float32, weights, code.number(0), width),
        )
        own = _Reader(code, torch.float32, sums, code.team()[0], width)
        heads = _Heads(code, row, width, angles, turns)
        inverse = code.load(code.pointer(inverses), row, F32)
        spread = code.splat(inverse, _LANES)

        def unturned(places: list[Value]) -> list[Value]:
            return heads.turned([grad.read(k) for k in places], places, back=True)

        def learn(places: list[Value], kept: list[Value]) -> list[Value]:
            for value, k in zip(unturned(places), places, strict=True):
                pulled = build.fmul(value, build.fmul(x.read(k), spread))
                own.write(build.fadd(own.read(k), pulled), k)
                kept = [code.fma(pulled, weight.read(k), kept[0])]
            return kept

        (along,) = heads.over([ir.Constant(_VECTOR, [0.0] * _LANES)], learn)
        mean = code.splat(build.fneg(build.fdiv(total(code, along), build.sitofp(width, F32))), _LANES)

        def pull(places: list[Value], _: list[Value]) -> list[Value]:
            for value, k in zip(unturned(places), places, strict=True):
                apart = code.fma(build.fmul(x.read(k), spread), mean, build.fmul(value, weight.read(k)))
                out.write(build.fmul(apart, spread), k)
            return []

        heads.over([], pull)

    return row_kernel(12, body, rows_at=6)


def _as_it_is(code: Code, x: Value) -> tuple[Value, Value]:
    return x, constant(1.0, x)


def _bent(code: Code, x: Value) -> tuple[Value, Value]:
    build, square = code.build, code.build.fmul(x, x)
    bent = build.fmul(code.fma(build.fmul(square, constant(_BEND, x)), x, x), constant(_STEEP, x))
    return bent, build.fmul(code.fma(square, constant(3 * _BEND, x), constant(1.0, x)), constant(_STEEP, x))


_ACTS: dict[str, Callable[[Code, Value], tuple[Value, Value]]] = {"silu": _as_it_is, "gelu_pytorch_tanh": _bent}
"""Functions ``x * sigmoid(z)`` of a gate, by transformers' names: z and its derivative."""


def _act(code: Code, x: Value, act: str) -> tuple[Value, Value]:
    """The function of a gate and its derivative."""
    build, one, (z, slope) = code.build, constant(1.0, x), _ACTS[act](code, x)
    share = build.fdiv(one, build.fadd(one, exponential(code, build.fneg(z))))
    value = build.fmul(x, share)
    return value, code.fma(build.fmul(value, slope), build.fsub(one, share), share)


@cache
def _gate(dtype: torch.dtype, act: str) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        *places, _, width = table
        gate, up, out = (_Reader(code, dtype, each, row, width) for each in places)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            out.write(code.build.fmul(_act(code, gate.read(k), act)[0], up.read(k)), k)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(5, body, rows_at=3)


@cache
def _gate_back(dtype: torch.dtype, act: str) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build, (*places, _, width) = code.build, table
        grad, gate, up, to_gate, to_up = (_Reader(code, dtype, each, row, width) for each in places)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            given, (value, slope) = grad.read(k), _act(code, gate.read(k), act)
            to_up.write(build.fmul(given, value), k)
            to_gate.write(build.fmul(build.fmul(given, up.read(k)), slope), k)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(7, body, rows_at=5)
