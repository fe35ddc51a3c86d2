"""What a rejected draft leaves of the target's law, and a draw from it: compiled, one pass a row.

Written out with PyTorch a residual takes a dozen passes over float64 rows as wide as the vocabulary, and sampled
requests under load spend more time on that than on drafting.

Legend: N rows of the target's laws, R draws, V vocabulary, S width of a draft's law.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from dspark.kernels.law import inverted
from dspark.kernels.machine import F32, F64, I64, Code, Kernel, Value
from dspark.kernels.rows import row_kernel, run_call

_LANES = 8


class Rest(NamedTuple):
    """A law ``row`` of which a draft's is taken away: ``p_d_S`` fp32 over the ids ``support_S`` (None: all of them).

    Without ``p_d_S`` the row stays as it is.
    """

    row: int
    p_d_S: Tensor | None = None
    support_S: Tensor | None = None


def draw_rests(p_NV: Tensor, rests: Sequence[Rest], u_R: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative ``max(p_t - p_d, 0)`` exceeds ``u`` (float64) of its sum; and that sum ``[R]``.

    ``p_NV`` as ``can_make_law`` has it. All in float64, as ``rejection.residual``. Never an index where nothing is
    left; -1 and a sum of 0 where nothing is left at all.
    """
    width = p_NV.shape[1]
    scratch_RV = torch.empty(len(rests), width, dtype=torch.float64)
    ids_R, mass_R = torch.empty(len(rests), dtype=torch.int64), torch.empty(len(rests), dtype=torch.float64)
    u_R = u_R.contiguous()
    table_R4 = torch.tensor([_addresses(p_NV, rest) for rest in rests], dtype=torch.int64)
    pointers = (each.data_ptr() for each in (table_R4, u_R, scratch_RV, ids_R, mass_R))
    run_call((_draw(), (len(rests), width, *pointers)), 0 if len(rests) == 1 else len(rests) * width)
    return ids_R, mass_R


def _addresses(p_NV: Tensor, rest: Rest) -> tuple[int, int, int, int]:
    law = p_NV.data_ptr() + rest.row * p_NV.stride(0) * p_NV.element_size()
    if rest.p_d_S is None:
        return law, 0, 0, 0
    assert rest.p_d_S.dtype == torch.float32 and rest.p_d_S.is_contiguous()
    support = 0 if rest.support_S is None else rest.support_S.data_ptr()
    return law, rest.p_d_S.data_ptr(), support, len(rest.p_d_S)


@cache
def _draw() -> Kernel:
    return row_kernel(7, _draw_row, rows_at=0)


def _draw_row(code: Code, table: list[Value], row: Value) -> None:
    build = code.build
    _, width, addresses, uniforms, scratch, ids, masses = table
    mine = code.at(code.pointer(addresses), build.mul(row, code.number(4)), I64)
    law, drafted, support, count = (code.load(mine, code.number(index), I64) for index in range(4))
    rest = code.at(code.pointer(scratch), build.mul(row, width), F64)

    def widen(k: Value, _: list[Value]) -> list[Value]:
        eight = code.load(code.pointer(law), k, F32, _LANES)
        code.store(build.fpext(eight, ir.VectorType(F64, _LANES)), rest, k, F64)
        return []

    code.loop(code.number(0), width, _LANES, [], widen)

    def take(k: Value, place: Value) -> None:
        less = build.fpext(code.load(code.pointer(drafted), k, F32), F64)
        left = build.fsub(code.load(rest, place, F64), less)
        # NaN stays: a sum that is no number is noticed.
        code.store(
            build.select(build.fcmp_ordered("<", left, ir.Constant(F64, 0.0)), ir.Constant(F64, 0.0), left),
            rest,
            place,
            F64,
        )

    def of_support(k: Value, _: list[Value]) -> list[Value]:
        take(k, code.load(code.pointer(support), k, I64))
        return []

    def of_all(k: Value, _: list[Value]) -> list[Value]:
        take(k, k)
        return []

    with build.if_else(build.icmp_signed("!=", support, code.number(0))) as (some, whole):
        with some:
            code.loop(code.number(0), count, 1, [], of_support)
        with whole:
            code.loop(code.number(0), count, 1, [], of_all)

    u = code.load(code.pointer(uniforms), row, F64)
    found, mass = inverted(code, lambda k, lanes: code.load(rest, k, F64, lanes), width, u)
    code.store(found, code.pointer(ids), row, I64)
    code.store(mass, code.pointer(masses), row, F64)
