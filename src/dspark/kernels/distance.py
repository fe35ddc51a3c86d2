"""How far a draft's distributions are from the target's, and the gradient of that, a row in one go.

Written out with PyTorch a row as wide as a vocabulary is read and written some fifteen times; here it stays in the
processor's cache from its first number to its gradient.

Legend: C rows, D draft vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, reduce

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import F32, I64, Code, Kernel, Value
from dspark.kernels.numbers import bits, constant, exponential, from_bits, largest, total
from dspark.kernels.rows import can_row, row_kernel

_LANES = 8
_WAYS = 4  # sums side by side: none waits for its own last addition, and a wide vocabulary adds up more exactly
_VECTOR = ir.VectorType(F32, _LANES)


def can_measure(logits_CD: Tensor) -> bool:
    """Whether ``distances`` takes such rows."""
    return can_row(logits_CD, logits_CD.shape[1]) and logits_CD.shape[1] % (_LANES * _WAYS) == 0


def distances(
    logits_CD: Tensor,
    target_CD: Tensor,
    log_mass_C: Tensor,
    labels_C: Tensor,
    mix: tuple[float, float, float],
) -> Tensor:
    """Hard and soft cross-entropy and L1 distance of each row ``[3, C]``; ``training.losses`` says which those are.

    ``target_CD - log_mass_C`` are the target's log-probabilities; they are overwritten, and ``logits_CD`` becomes the
    gradient of the terms' sum by ``mix``. Labels are -1 where there is none. fp32, contiguous.
    """
    rows, width = logits_CD.shape
    found_5C = logits_CD.new_empty(5, rows)
    given = (logits_CD, target_CD, log_mass_C, labels_C, found_5C)
    assert all(each.is_contiguous() for each in given) and target_CD.shape == logits_CD.shape
    assert all(each.dtype == torch.float32 for each in given if each is not labels_C)
    assert labels_C.dtype == torch.int64 and not bool((labels_C >= width).any())
    _kernel()(*(each.data_ptr() for each in given), rows, width, *map(bits, mix))
    cross_C, inside_C, sum_C, label_C, l1_C = found_5C
    log_sum_C = sum_C.log()
    hard_C = (log_sum_C - label_C) * (labels_C >= 0)
    soft_C = log_sum_C * inside_C - cross_C
    return torch.stack((hard_C, soft_C, l1_C + (1 - inside_C).clamp_(min=0)))


@cache
def _kernel() -> Kernel:
    return row_kernel(10, _row, rows_at=5)


def _row(code: Code, table: list[Value], row: Value) -> None:
    build = code.build
    logits, target, log_mass, labels, found, rows, width = table[:7]
    hard, soft, l1 = (from_bits(code, each) for each in table[7:])
    place = build.mul(row, width)
    own, other = (code.at(code.pointer(each), place, F32) for each in (logits, target))
    label = code.load(code.pointer(labels), row, I64)
    known = build.icmp_signed(">=", label, code.number(0))
    spot = build.select(known, label, code.number(0))

    def larger(a: Value, b: Value) -> Value:
        return largest(code, a, b)

    best = _over(code, width, [-math.inf], lambda k, seen: [larger(seen[0], _read(code, own, k))], larger)
    top = largest(code, best[0])
    label_logit = build.fsub(code.load(own, spot, F32), top)
    cross, inside, mass = _exponentials(code, own, other, width, top, code.load(code.pointer(log_mass), row, F32))
    scale = _splat(code, build.fdiv(ir.Constant(F32, 1.0), mass))
    apart, pulled = _apart(code, own, other, width, scale)

    taught = build.select(known, hard, ir.Constant(F32, 0.0))
    shift = build.fsub(build.fadd(build.fmul(soft, inside), taught), build.fmul(l1, pulled))
    _gradient(code, own, other, width, scale, (shift, l1, soft))
    code.store(build.fsub(code.load(own, spot, F32), taught), own, spot, F32)

    for index, value in enumerate((cross, inside, mass, label_logit, apart)):
        code.store(value, code.pointer(found), build.add(build.mul(code.number(index), rows), row), F32)


def _exponentials(
    code: Code, own: Value, other: Value, width: Value, top: Value, log_mass: Value
) -> tuple[Value, Value, Value]:
    """``own`` becomes e^(l - top), ``other`` q; returns sum q (l - top), sum q, sum e^(l - top)."""
    build, top, log_mass = code.build, _splat(code, top), _splat(code, log_mass)

    def body(k: Value, sums: list[Value]) -> list[Value]:
        lower = build.fsub(_read(code, own, k), top)
        q = exponential(code, build.fsub(_read(code, other, k), log_mass))
        raised = exponential(code, lower)
        code.store(raised, own, k, F32)
        code.store(q, other, k, F32)
        # A logit of minus infinity with q = 0 counts as nothing, as its q log p would.
        kept = build.select(build.fcmp_ordered(">", q, constant(0.0, q)), lower, constant(0.0, q))
        return [code.fma(q, kept, sums[0]), build.fadd(sums[1], q), build.fadd(sums[2], raised)]

    cross, inside, mass = (total(code, each) for each in _over(code, width, [0.0] * 3, body))
    return cross, inside, mass


def _apart(code: Code, own: Value, other: Value, width: Value, scale: Value) -> tuple[Value, Value]:
    """Sum |p - q| and sum sign(p - q) p."""
    build = code.build

    def body(k: Value, sums: list[Value]) -> list[Value]:
        p = build.fmul(_read(code, own, k), scale)
        sign, apart = _sign(code, p, _read(code, other, k))
        return [code.fma(sign, apart, sums[0]), code.fma(sign, p, sums[1])]

    apart, pulled = (total(code, each) for each in _over(code, width, [0.0] * 2, body))
    return apart, pulled


def _gradient(code: Code, own: Value, other: Value, width: Value, scale: Value, factors: tuple[Value, ...]) -> None:
    """``own`` becomes p * (shift + l1 * sign(p - q)) - soft * q."""
    build = code.build
    shift, l1, soft = (_splat(code, each) for each in factors)

    def body(k: Value, _: list[Value]) -> list[Value]:
        p, q = build.fmul(_read(code, own, k), scale), _read(code, other, k)
        sign, _apart = _sign(code, p, q)
        value = build.fsub(build.fmul(p, code.fma(l1, sign, shift)), build.fmul(soft, q))
        code.store(value, own, k, F32)
        return []

    _over(code, width, [], body)


def _sign(code: Code, p: Value, q: Value) -> tuple[Value, Value]:
    """-1, 0 or 1, and p - q."""
    build, apart = code.build, code.build.fsub(p, q)
    zero = constant(0.0, p)
    below = build.select(build.fcmp_ordered("<", apart, zero), constant(-1.0, p), zero)
    return build.select(build.fcmp_ordered(">", apart, zero), constant(1.0, p), below), apart


def _over(
    code: Code,
    width: Value,
    starts: Sequence[float],
    body: Callable[[Value, list[Value]], list[Value]],
    put: Callable[[Value, Value], Value] | None = None,
) -> list[Value]:
    """Go over a row, ``_WAYS`` vectors at a time with results of their own; these put together (added) in the end."""
    count, put = len(starts), put or code.build.fadd

    def ways(k: Value, kept: list[Value]) -> list[Value]:
        results: list[Value] = []
        for way in range(_WAYS):
            at = code.build.add(k, code.number(way * _LANES))
            results += body(at, kept[way * count : (way + 1) * count])
        return results

    first = [ir.Constant(_VECTOR, [start] * _LANES) for start in starts] * _WAYS
    kept = code.loop(code.number(0), width, _LANES * _WAYS, first, ways)
    return [reduce(put, kept[index::count]) for index in range(count)]


def _read(code: Code, row: Value, k: Value) -> Value:
    return code.load(row, k, F32, _LANES)


def _splat(code: Code, value: Value) -> Value:
    return code.splat(value, _LANES)
