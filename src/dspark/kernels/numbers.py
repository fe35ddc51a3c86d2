"""Functions of vectors of fp32 numbers that a kernel is made of: exponentials, and what a vector adds up to."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from dspark.kernels.machine import F32, I16, I32, Code, Value

# e^x = 2^n e^r with n whole and |r| <= ln 2 / 2; ln 2 in two parts, the first short enough for an exact product.
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
# (e^r - 1 - r) / r^2 to a rounding error of fp32, highest power first (Cephes' expf).
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LEAST, _MOST = -87.0, 88.0  # 0 below, infinite above


def constant(value: float, like: Value) -> Value:
    """``value`` in every place of a vector such as ``like``."""
    exact = struct.unpack("f", struct.pack("f", value))[0]
    return ir.Constant(like.type, [exact] * like.type.count)


def exponential(code: Code, x: Value) -> Value:
    """``e^x``, to two units in the last place; exactly 0 below -87, infinite above 88, NaN for NaN."""
    build = code.build
    whole = ir.VectorType(I32, x.type.count)
    kept = _select(code, ">", x, constant(_LEAST, x), x, constant(_LEAST, x))
    kept = _select(code, "<", kept, constant(_MOST, x), kept, constant(_MOST, x))
    powers = _intrinsic(code, "rint", build.fmul(kept, constant(_LOG2_E, x)))
    rest = code.fma(powers, constant(-_LN2_HIGH, x), kept)
    rest = code.fma(powers, constant(-_LN2_LOW, x), rest)
    value = constant(_POLYNOMIAL[0], x)
    for factor in _POLYNOMIAL[1:]:
        value = code.fma(value, rest, constant(factor, x))
    value = build.fadd(code.fma(value, build.fmul(rest, rest), rest), constant(1.0, x))
    exponent = build.add(build.fptosi(powers, whole), ir.Constant(whole, [127] * x.type.count))
    scale = build.bitcast(build.shl(exponent, ir.Constant(whole, [23] * x.type.count)), x.type)
    value = _select(code, ">", x, constant(_MOST, x), constant(math.inf, x), build.fmul(value, scale))
    value = _select(code, ">", x, constant(_LEAST, x), value, constant(0.0, x))
    return build.select(build.fcmp_unordered("uno", x, x), x, value)


def hyperbolic_tangent(code: Code, x: Value) -> Value:
    """``tanh(x) = 1 - 2 / (e^2x + 1)``, to an absolute error of a few 1e-7."""
    raised = code.build.fadd(exponential(code, code.build.fadd(x, x)), constant(1.0, x))
    return code.build.fsub(constant(1.0, x), code.build.fdiv(constant(2.0, x), raised))


def brain(code: Code, x: Value) -> Value:
    """The nearest bf16 numbers as 16-bit integers, ties to even; NaN for NaN."""
    build, half, whole = code.build, ir.VectorType(I16, x.type.count), ir.VectorType(I32, x.type.count)

    def every(value: int) -> Value:
        return ir.Constant(whole, [value] * x.type.count)

    bits = build.bitcast(x, whole)
    odd = build.and_(build.lshr(bits, every(16)), every(1))
    nearest = build.lshr(build.add(bits, build.add(odd, every(0x7FFF))), every(16))
    return build.trunc(build.select(build.fcmp_unordered("uno", x, x), every(0x7FC0), nearest), half)


def largest(code: Code, x: Value, other: Value | None = None) -> Value:
    """The largest number of a vector; with ``other``, the larger of both, place by place."""
    if other is not None:
        return _select(code, ">", x, other, x, other)
    return _folded(code, x, lambda a, b: largest(code, a, b))


def total(code: Code, x: Value) -> Value:
    """The sum of a vector's numbers: halves onto each other until one is left."""
    return _folded(code, x, code.build.fadd)


def totals(code: Code, vectors: Sequence[Value]) -> Value:
    """``total`` of as many vectors as each has places, in their order and to the bit as each by itself."""
    build, whole = code.build, vectors[0].type.count
    half, found = whole // 2, list(vectors)
    while len(found) > 1:
        firsts = range(0, 2 * whole, 2 * half)
        low, high = ([first + i for first in firsts for i in range(at, at + half)] for at in (0, half))
        masks = [ir.Constant(ir.VectorType(I32, whole), which) for which in (low, high)]
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [build.fadd(*(build.shuffle_vector(a, b, mask) for mask in masks)) for a, b in pairs]
        half //= 2
    return found[0]


def _folded(code: Code, x: Value, put: Any) -> Value:
    build = code.build
    while x.type.count > 1:
        half = x.type.count // 2
        low, high = (places(code, x, range(first, first + half)) for first in (0, half))
        x = put(low, high)
    return build.extract_element(x, ir.Constant(I32, 0))


def places(code: Code, x: Value, which: Sequence[int]) -> Value:
    """The numbers of a vector at these places."""
    mask = ir.Constant(ir.VectorType(I32, len(which)), list(which))
    return code.build.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), mask)


def square_root(code: Code, x: Value) -> Value:
    """Of one number."""
    known = code.module.globals.get("llvm.sqrt.f32")
    return code.build.call(known or ir.Function(code.module, ir.FunctionType(F32, [F32]), "llvm.sqrt.f32"), [x])


def _select(code: Code, sign: str, a: Value, b: Value, yes: Value, no: Value) -> Value:
    return code.build.select(code.build.fcmp_ordered(sign, a, b), yes, no)


def _intrinsic(code: Code, name: str, x: Value) -> Value:
    full = f"llvm.{name}.v{x.type.count}f32"
    known = code.module.globals.get(full)
    return code.build.call(known or ir.Function(code.module, ir.FunctionType(x.type, [x.type]), full), [x])


def bits(value: float) -> int:
    """An fp32 number as a kernel's table carries it."""
    found: int = struct.unpack("i", struct.pack("f", value))[0]
    return found


def from_bits(code: Code, value: Value) -> Value:
    """The fp32 number of a table's entry."""
    return code.build.bitcast(code.build.trunc(value, I32), F32)
