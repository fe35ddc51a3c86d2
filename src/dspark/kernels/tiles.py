"""Products in bf16 with fp32 sums: weights in the order that a CPU's instructions for them want, and who multiplies.

Matrix units (AMX, ``kernels.matrix``) take 16 rows in little more time than one; vectors that multiply pairs of bf16
numbers (AVX512_BF16, ``kernels.dots``) twice as many as of fp32. How weights lie is said in ``kernels.narrow``.

Legend: T rows, I inputs, O outputs, P panels of 32 outputs, S steps of 32 inputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dspark.kernels.blocks import Blocks
from dspark.kernels.dots import DotProduct, has_dots
from dspark.kernels.machine import Call, Kernel
from dspark.kernels.matrix import MatrixProduct, has_units
from dspark.kernels.narrow import PANEL, ROWS, STEP
from dspark.kernels.product import Form
from dspark.kernels.program import Rooms

Scratch = tuple[Tensor, Tensor | None]  # rows in bf16, whole tiles of them; panels in tiles, where weights are blocks


@cache
def can_tile() -> bool:
    """Whether this CPU has instructions for it, and the system lets us use them."""
    return has_units() or has_dots()


def fits(width: int) -> bool:
    """Whether weights of so many inputs can be had as ``Tiles``."""
    return width % STEP == 0


class Tiles:
    """A frozen weight ``[O, I]`` rounded to bf16 (beforehand, or ``Blocks`` at every use), and its bias; used as
    ``Panels`` are.
    """

    def __init__(self, weight_OI: Tensor | Blocks, bias_O: Tensor | None = None, outputs: int = 0) -> None:
        """``Blocks`` stand for all outputs of whole panels; ``outputs``: how many there are really."""
        if isinstance(weight_OI, Blocks):
            self._weights: Tensor | Blocks = weight_OI
            self.outputs, self.width, panels = outputs, weight_OI.width, len(weight_OI.numbers)
        else:
            self.outputs, self.width = weight_OI.shape
            assert fits(self.width), self.width
            weights = torch.nn.functional.pad(weight_OI.to(torch.bfloat16), (0, 0, 0, -self.outputs % PANEL))
            # outputs: panel, tile, column; inputs: step, pair, which of the pair
            parts = weights.view(-1, 2, ROWS, self.width // STEP, STEP // 2, 2)
            self._weights = parts.permute(0, 3, 1, 4, 2, 5).contiguous()
            panels = len(self._weights)
        self.padded = panels * PANEL
        self._zeros = torch.zeros(self.padded)
        short = self.padded - self.outputs
        self._bias = self._zeros if bias_O is None else torch.nn.functional.pad(bias_O.float(), (0, short))

    @property
    def name(self) -> str:
        """Of the form that the weight is kept in."""
        return self._weights.form.value if isinstance(self._weights, Blocks) else "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self._weights.nbytes

    def __call__(self, x_TI: Tensor, more_TO: Tensor | None = None) -> Tensor:
        """``[T, I]`` of any floating dtype, rounded to bf16, to fp32 ``[T, O]``.

        ``more_TO``: another such product of as many rows and outputs, to which this one is added in place.
        """
        rows, x_TI = len(x_TI), x_TI.float().contiguous()
        if more_TO is None:
            out_TO = torch.empty(rows, self.padded)
        else:
            like = (more_TO.dtype, tuple(more_TO.shape), more_TO.stride())
            assert like == (torch.float32, (rows, self.outputs), (self.padded, 1)), "not a product of ours"
            out_TO = more_TO.as_strided((rows, self.padded), (self.padded, 1))
        scratch = self.scratch(rows)
        kernel, table = self.call(x_TI, out_TO, None if more_TO is None else out_TO, scratch)
        kernel(*table)
        return out_TO[:, : self.outputs] if more_TO is None else more_TO

    def scratch(self, rows: int) -> Scratch:
        """Room for that many rows in tiles, and for panels."""
        return torch.empty(-(-rows // ROWS) * ROWS, self.width, dtype=torch.bfloat16), self._unpacked()

    def shared_call(self, rooms: Rooms, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None) -> Call:
        """``call`` with scratch that programs share."""
        tiles = rooms.room("rows in tiles", self.width, -(-len(x_TI) // ROWS) * ROWS, torch.bfloat16)
        return self.call(x_TI, out_TO, more_TO, (tiles, rooms.fixed(self._unpacked())))

    def _unpacked(self) -> Tensor | None:
        """Two panels of every thread, where weights are blocks."""
        if not isinstance(self._weights, Blocks):
            return None
        return torch.empty(torch.get_num_threads(), 2 * PANEL, self.width, dtype=torch.bfloat16)

    def call(self, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None, scratch: Scratch) -> Call:
        """``Panels.call``, with factors rounded to bf16."""
        tiles, unpacked = scratch
        x = x_TI.data_ptr(), self.width, len(x_TI), self.width // STEP, tiles.data_ptr()
        out = out_TO.data_ptr(), self.padded, self._bias.data_ptr()
        more = (self._zeros.data_ptr(), 0) if more_TO is None else (more_TO.data_ptr(), self.padded)
        panels, weights = self.padded // PANEL, self._weights
        if not isinstance(weights, Blocks):
            return _kernel(None, has_units()), (*x, weights.data_ptr(), panels, *out, *more)
        assert unpacked is not None
        numbers, scales = weights.addresses
        return _kernel(weights.form, has_units()), (*x, numbers, panels, *out, *more, scales, unpacked.data_ptr())


@cache
def _kernel(form: Form | None, units: bool) -> Kernel:
    """Rows times panels, plus a bias, plus rows of their own; ``form`` of weights that are blocks."""
    assert can_tile(), "this process may not use the instructions"
    product = MatrixProduct(form) if units else DotProduct(form)
    return Kernel(product.module, product.name)
