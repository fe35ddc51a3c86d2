"""Matrices from hidden states to the draft vocabulary as losses multiply with them, forward and backward.

Legend: C slots, D draft vocabulary, w width of what is multiplied.
"""

from __future__ import annotations

from torch import Tensor

from dspark.kernels.tiles import Tiles, can_tile, fits


class Outputs:
    """A matrix ``[D, w]`` that gets no gradient here.

    ``bf16``: factors are rounded to bf16 where the hardware multiplies and sums such tiles. Sums and results are fp32:
    rounded logits would make near distributions look apart (docs/lab_log.md).
    """

    def __init__(self, weight_Dw: Tensor, bf16: bool = False) -> None:
        self.weight = weight_Dw
        self._there: Tiles | None = None
        if (
            bf16
            and weight_Dw.device.type == "cpu"
            and can_tile()
            and all(width and fits(width) for width in weight_Dw.shape)
        ):
            self._there, self._back = Tiles(weight_Dw), Tiles(weight_Dw.T)

    @property
    def tiled(self) -> bool:
        """Whether factors are rounded."""
        return self._there is not None

    def logits(self, x_Cw: Tensor) -> Tensor:
        """``[C, w]`` to ``[C, D]``, a tensor of its own."""
        return x_Cw @ self.weight.T if self._there is None else self._there(x_Cw)

    def add_logits(self, x_Cw: Tensor, logits_CD: Tensor) -> None:
        """The same added to ``logits_CD``, which are another's ``logits``, tiled if these are."""
        if self._there is None:
            logits_CD.addmm_(x_Cw, self.weight.T)
        else:
            self._there(x_Cw, logits_CD)

    def back(self, grad_CD: Tensor) -> Tensor:
        """The gradient ``[C, w]`` of what was multiplied, for that of the logits."""
        return grad_CD @ self.weight if self._there is None else self._back(grad_CD)
