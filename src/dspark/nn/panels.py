"""A frozen weight in panels, and its product with rows (``kernels.product``)."""

from __future__ import annotations

import torch
from torch import Tensor

from dspark.kernels.blocks import HALF, Blocks, can_unpack
from dspark.kernels.machine import Call, lanes
from dspark.kernels.product import GROUP, Form, direct_rows, product_kernel
from dspark.kernels.program import Rooms
from dspark.kernels.whole import Wholes, can_count


class Panels:
    """A weight ``[out, in]`` in panels, and its bias."""

    def __init__(
        self,
        form: Form,
        weights: Tensor,
        scales: Tensor | None,
        outputs: int,
        width: int,
        bias: Tensor | None = None,
    ) -> None:
        self.form, self.weights, self.scales = form, weights, scales
        self.outputs, self.width = outputs, width
        self.padded = len(weights) * lanes()
        self._kernel = product_kernel(form)
        self._zeros = torch.zeros(self.padded)
        self._bias = self._zeros.clone()
        self.bias = bias
        if bias is not None:
            self._bias[:outputs] = bias
        self._direct = direct_rows(form)
        self._scratch = 0 if form is Form.FLOAT else width * lanes()
        self._places = (
            weights.data_ptr(),
            weights[0].nbytes,
            0 if scales is None else scales.data_ptr(),
            0 if scales is None else scales[0].nbytes,
            len(weights),
        )

    @property
    def name(self) -> str:
        """Of the form."""
        return self.form.value

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        return self.weights.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """fp32 rows ``[T, in]`` to ``[T, out]``; TypeError for another dtype."""
        if x_TI.dtype != torch.float32:
            raise TypeError(f"rows of {x_TI.dtype}, expected {torch.float32}")
        x_TI = x_TI.contiguous()
        out_TO = x_TI.new_empty(len(x_TI), self.padded)
        scratch = self.scratch(len(x_TI))
        kernel, table = self.call(x_TI, out_TO, None, scratch)
        kernel(*table)
        return out_TO if self.padded == self.outputs else out_TO[:, : self.outputs]

    def weight(self) -> Tensor:
        """The weight ``[out, in]``, fp32, every number as it was."""
        wide = self._counts().float()
        if self.scales is not None:
            scale, *offset = self.scales.float().repeat_interleave(GROUP, dim=1).unbind(dim=2)
            wide = wide * scale + (offset[0] if offset else 0.0)
        return wide.transpose(1, 2).flatten(0, 1)[: self.outputs]

    def blocks(self) -> Blocks | None:
        """The weight as tiles unpack it; None where it is no blocks, or this CPU has no use for them."""
        if not self.form.grouped or not can_unpack() or lanes() != 2 * HALF:
            return None
        return Blocks(self.form, *self._by_output())

    def wholes(self) -> Wholes | None:
        """The weight as rows in whole numbers meet it; None where it is no blocks, or this CPU has no use for them."""
        if not self.form.grouped or not can_count():
            return None
        return Wholes(self.form, *self._by_output(), self.outputs, self.bias)

    def _by_output(self) -> tuple[Tensor, list[Tensor]]:
        """What blocks hold: numbers ``[O, I]`` and scales ``[O, G]``, outputs in whole panels."""
        assert self.scales is not None
        numbers_OI = self._counts().transpose(1, 2).flatten(0, 1)
        return numbers_OI, [scale_PGN.transpose(1, 2).flatten(0, 1) for scale_PGN in self.scales.unbind(dim=2)]

    def _counts(self) -> Tensor:
        """Numbers as they are written, one a place: panel, input, output of the panel."""
        if self.form is not Form.NIBBLE:
            return self.weights
        return torch.stack((self.weights & 15, self.weights >> 4), dim=2).flatten(1, 2)

    def scratch(self, rows: int) -> Tensor | None:
        """Room for a panel of every thread, where that many rows need it."""
        return torch.empty(torch.get_num_threads(), self._scratch) if rows > self._direct else None

    def shared_call(self, rooms: Rooms, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None) -> Call:
        """``call`` with scratch that programs share."""
        return self.call(x_TI, out_TO, more_TO, rooms.fixed(self.scratch(len(x_TI))))

    def call(self, x_TI: Tensor, out_TO: Tensor, more_TO: Tensor | None, scratch: Tensor | None) -> Call:
        """The product of ``x_TI``, plus ``more_TO`` if given, written to ``out_TO``, which may be ``more_TO``.

        Both have ``padded`` columns; all are fp32 and contiguous, and live as long as the call is used.
        """
        table = (x_TI.data_ptr(), self.width, len(x_TI), self.width, *self._places, out_TO.data_ptr(), self.padded)
        added = (self._zeros.data_ptr(), 0) if more_TO is None else (more_TO.data_ptr(), self.padded)
        room = (0, 0) if scratch is None else (scratch.data_ptr(), 4 * self._scratch)
        return self._kernel, (*table, self._bias.data_ptr(), *added, *room)
