"""What a sequential head makes of its products, compiled: a gate on what was looked up, a step of a recurrent state.

Legend: R rows, r Markov rank.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from dspark.kernels.machine import F32, Call, Code, Kernel, Value
from dspark.kernels.numbers import constant, exponential, hyperbolic_tangent
from dspark.kernels.rows import row_kernel, run_call

_LANES = 8


def gated(gate_Rr: Tensor, embedded_Rr: Tensor) -> Tensor:
    """``sigmoid(gate) * embedded [..., r]``; fp32 on a CPU, contiguous, r of whole vectors."""
    out = embedded_Rr.new_empty(embedded_Rr.shape)
    run_call(gated_call(gate_Rr, embedded_Rr, out), out.numel())
    return out


def gated_call(gate_Rr: Tensor, embedded_Rr: Tensor, out_Rr: Tensor) -> Call:
    """``gated`` written to ``out``."""
    width = out_Rr.shape[-1]
    return _gated(), (gate_Rr.data_ptr(), embedded_Rr.data_ptr(), out_Rr.data_ptr(), out_Rr.numel() // width, width)


def recurred(joint_R3r: Tensor, state_Rr: Tensor | None) -> tuple[Tensor, Tensor]:
    """``tanh(o)`` and the next state ``[..., r]`` of ``g, c, o [..., 3 r]`` (Eq. 6); ``state`` None: zeros."""
    width = joint_R3r.shape[-1] // 3
    after, out = (joint_R3r.new_empty(*joint_R3r.shape[:-1], width) for _ in range(2))
    if state_Rr is not None:
        after.copy_(state_Rr)
    run_call(recur_call(joint_R3r, after, out, first=state_Rr is None), joint_R3r.numel())
    return out, after


def recur_call(joint_R3r: Tensor, state_Rr: Tensor, out_Rr: Tensor, first: bool) -> Call:
    """``recurred``: ``state`` is written over, and not read where it is the ``first`` of a block."""
    width = out_Rr.shape[-1]
    places = (joint_R3r.data_ptr(), state_Rr.data_ptr(), out_Rr.data_ptr())
    return _recurred(first), (*places, out_Rr.numel() // width, width)


def _sigmoid(code: Code, x: Value) -> Value:
    one = constant(1.0, x)
    return code.build.fdiv(one, code.build.fadd(one, exponential(code, code.build.fneg(x))))


@cache
def _gated() -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        *places, _, width = table
        gate, embedded, out = (code.at(code.pointer(each), code.build.mul(row, width), F32) for each in places)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            opened = _sigmoid(code, code.load(gate, k, F32, _LANES))
            code.store(code.build.fmul(opened, code.load(embedded, k, F32, _LANES)), out, k, F32)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(5, body, rows_at=3)


@cache
def _recurred(first: bool) -> Kernel:
    def body(code: Code, table: list[Value], row: Value) -> None:
        build = code.build
        joint, *places, _, width = table
        gates = code.at(code.pointer(joint), build.mul(row, build.mul(width, code.number(3))), F32)
        candidates = code.at(gates, width, F32)
        outs = code.at(candidates, width, F32)
        state, out = (code.at(code.pointer(each), build.mul(row, width), F32) for each in places)

        def numbers(k: Value, _: list[Value]) -> list[Value]:
            keep = _sigmoid(code, code.load(gates, k, F32, _LANES))
            fresh = hyperbolic_tangent(code, code.load(candidates, k, F32, _LANES))
            after = build.fmul(build.fsub(constant(1.0, keep), keep), fresh)
            if not first:
                after = code.fma(keep, code.load(state, k, F32, _LANES), after)
            code.store(after, state, k, F32)
            code.store(hyperbolic_tangent(code, code.load(outs, k, F32, _LANES)), out, k, F32)
            return []

        code.loop(code.number(0), width, _LANES, [], numbers)

    return row_kernel(5, body, rows_at=3)
