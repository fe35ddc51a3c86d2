"""Numbers as a cache keeps them: fp32, or bf16, which half the bytes hold and which kernels read as fp32, exactly."""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir

from dspark.kernels.machine import F32, I16, I32, Code, Value
from dspark.kernels.numbers import brain

KINDS: dict[torch.dtype, Any] = {torch.float32: F32, torch.bfloat16: I16}
"""What a kernel takes a number of that type for."""


def read_kept(code: Code, kind: Any, pointer: Value, index: Value, count: int) -> Value:
    """``count`` numbers from ``index`` on, as fp32."""
    kept = code.load(pointer, index, kind, count)
    if kind is F32:
        return kept
    whole = ir.VectorType(I32, count)
    upper = code.build.shl(code.build.zext(kept, whole), ir.Constant(whole, [16] * count))
    return code.build.bitcast(upper, ir.VectorType(F32, count))


def write_kept(code: Code, kind: Any, value: Value, pointer: Value, index: Value) -> None:
    """fp32 numbers from ``index`` on, rounded to the nearest that can be kept, ties to even."""
    code.store(value if kind is F32 else brain(code, value), pointer, index, kind)
