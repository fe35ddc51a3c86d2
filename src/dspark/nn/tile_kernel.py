"""Products of many rows in bf16 with fp32 sums on the matrix units of a CPU (AMX).

A tile holds 16 rows of 32 bf16 numbers; two tiles of rows and two of weights make four of sums at a time. Weights come
in panels of 32 outputs in the order in which tiles are loaded: pairs of inputs side by side, as the units want them.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import suppress
from functools import cache

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

from dspark.nn.machine import I8, I16, I64, POINTER, Code, Kernel, Value, can_compile

_ROWS = 16  # of a tile; as many fp32 sums stand in each
_STEP = 32  # inputs of a tile
_PANEL = 2 * _ROWS
_TILE_BYTES = 1024
_BLOCK = 512  # rows whose bf16 numbers stay in the second cache while all panels go by
_TABLE = ("x", "rows", "steps", "weights", "panels", "out", "out_row", "adds")
# Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), which a process asks once before its first tile.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


@cache
def can_tile() -> bool:
    """Whether this CPU has the units, and the system lets us use them."""
    here = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and can_compile()
    features = llvm.get_host_cpu_features() if here else {}
    if not all(features.get(each, False) for each in ("amx-tile", "amx-bf16", "avx512f")):
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0)
    return False


def fits(width: int) -> bool:
    """Whether weights of so many inputs can be had as ``Tiles``."""
    return width % _STEP == 0


class Tiles:
    """A frozen weight ``[O, I]`` rounded to bf16, and its bias, for products of many rows."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.outputs, self.width = weight_OI.shape
        self._bias = bias_O
        assert fits(self.width), self.width
        padded = torch.nn.functional.pad(weight_OI.to(torch.bfloat16), (0, 0, 0, -self.outputs % _PANEL))
        # outputs: panel, tile, column; inputs: step, pair, which of the pair
        parts = padded.view(-1, 2, _ROWS, self.width // _STEP, _STEP // 2, 2)
        self._weights = parts.permute(0, 3, 1, 4, 2, 5).contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self._weights.nbytes

    def __call__(self, x_TI: Tensor, more_TO: Tensor | None = None) -> Tensor:
        """``[T, I]`` of any floating dtype, rounded to bf16, to fp32 ``[T, O]``.

        ``more_TO``: another such product of as many rows and outputs, to which this one is added in place (what
        stands behind its rows is overwritten).
        """
        rows, panels = len(x_TI), len(self._weights)
        padded = -(-rows // _PANEL) * _PANEL  # what stands behind the last row yields sums that nobody reads
        narrow = x_TI.new_empty(padded, self.width, dtype=torch.bfloat16)
        narrow[:rows] = x_TI
        if more_TO is None:
            out_TO = torch.empty(padded, panels * _PANEL, dtype=torch.float32)[:rows, : self.outputs]
        else:
            assert more_TO.shape == (rows, self.outputs) and more_TO.stride() == (panels * _PANEL, 1)
            behind = more_TO.untyped_storage().nbytes() // 4 - more_TO.storage_offset()
            assert more_TO.dtype == torch.float32 and behind >= padded * panels * _PANEL, "not a product of ours"
            out_TO = more_TO
        addresses = narrow.data_ptr(), padded, self.width // _STEP, self._weights.data_ptr(), panels
        _kernel()(*addresses, out_TO.data_ptr(), panels * _PANEL, int(more_TO is not None))
        return out_TO if self._bias is None else out_TO.add_(self._bias)


@cache
def _kernel() -> Kernel:
    """Rows times panels; the table is ``_TABLE``."""
    return Kernel(_Product().module, "tiles")


class _Product:
    """The function a team of threads runs: each takes its share of the panels, blocks of rows go by."""

    def __init__(self) -> None:
        self.module = ir.Module()
        self._code = code = Code(self.module, "tiles", (POINTER,))
        build = code.build
        table = [code.load(code.function.args[0], code.number(i), I64) for i in range(len(_TABLE))]
        self._at = at = dict(zip(_TABLE, table, strict=True))
        first, last = code.share(at["panels"])
        self._configure()
        self._panel_bytes = build.mul(at["steps"], code.number(2 * _TILE_BYTES))
        self._row_bytes = build.mul(at["steps"], code.number(2 * _STEP))
        self._out_bytes = build.mul(at["out_row"], code.number(4))

        def block(row: Value, _: list[Value]) -> list[Value]:
            end = code.least(build.add(row, code.number(_BLOCK)), at["rows"])
            return code.loop(first, last, 1, [], lambda panel, _: self._panel(panel, row, end))

        code.loop(code.number(0), at["rows"], _BLOCK, [], block)
        self._tile("tilerelease", [])
        build.ret_void()

    def _configure(self) -> None:
        """All eight tiles: 16 rows of 64 bytes."""
        code, place = self._code, self._code.room(_ROWS)  # 64 bytes
        code.store(ir.Constant(ir.VectorType(I8, 64), [1] + [0] * 63), place, code.number(0), I8)
        columns = ir.Constant(ir.VectorType(I16, 8), [2 * _STEP] * 8)
        code.store(columns, place, code.number(8), I16)
        code.store(ir.Constant(ir.VectorType(I8, 8), [_ROWS] * 8), place, code.number(48), I8)
        self._tile("ldtilecfg", [place])

    def _panel(self, panel: Value, row: Value, end: Value) -> list[Value]:
        """One panel with the rows of a block, two tiles of them at a time."""
        code, build, at = self._code, self._code.build, self._at
        weights = code.at(code.pointer(at["weights"]), build.mul(panel, self._panel_bytes), I8)
        column = build.mul(panel, code.number(4 * _PANEL))

        def pair(first: Value, _: list[Value]) -> list[Value]:
            x = code.at(code.pointer(at["x"]), build.mul(first, self._row_bytes), I8)
            out = code.at(code.pointer(at["out"]), build.add(build.mul(first, self._out_bytes), column), I8)
            below = code.at(out, build.mul(self._out_bytes, code.number(_ROWS)), I8)
            ends = [code.at(base, code.number(beside), I8) for base in (out, below) for beside in (0, 64)]
            adds = build.icmp_signed("!=", at["adds"], code.number(0))
            with build.if_else(adds) as (then, otherwise):
                with then:
                    for number, place in enumerate(ends):
                        self._tile("tileloadd64", [number, place, self._out_bytes])
                with otherwise:
                    for number in range(4):
                        self._tile("tilezero", [number])
            code.loop(code.number(0), at["steps"], 1, [], lambda step, _: self._step(step, x, weights))
            for number, place in enumerate(ends):
                self._tile("tilestored64", [number, place, self._out_bytes])
            return []

        return code.loop(row, end, _PANEL, [], pair)

    def _step(self, step: Value, x: Value, weights: Value) -> list[Value]:
        """32 inputs of two tiles of rows (4, 5) and two of weights (6, 7), added to the sums (0 to 3)."""
        code, build = self._code, self._code.build
        inputs = code.at(x, build.mul(step, code.number(2 * _STEP)), I8)
        below = code.at(inputs, build.mul(self._row_bytes, code.number(_ROWS)), I8)
        panel = code.at(weights, build.mul(step, code.number(2 * _TILE_BYTES)), I8)
        beside = code.at(panel, code.number(_TILE_BYTES), I8)
        for number, (base, stride) in enumerate(
            ((inputs, self._row_bytes), (below, self._row_bytes), (panel, code.number(64)), (beside, code.number(64)))
        ):
            self._tile("tileloadd64", [4 + number, base, stride])
        for number in range(4):
            self._tile("tdpbf16ps", [number, 4 + number // 2, 6 + number % 2])
        return []

    def _tile(self, name: str, arguments: list[Value | int]) -> None:
        """An instruction on tiles; plain integers are numbers of tiles."""
        values = [ir.Constant(I8, each) if isinstance(each, int) else each for each in arguments]
        kind = ir.FunctionType(ir.VoidType(), [each.type for each in values])
        known = self.module.globals.get(f"llvm.x86.{name}")
        self._code.build.call(known or ir.Function(self.module, kind, f"llvm.x86.{name}"), values)
