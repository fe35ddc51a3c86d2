"""The frozen head as losses multiply with it, forward and backward.

Legend: C slots, D draft vocabulary, d hidden size.
"""

from __future__ import annotations

from torch import Tensor

from dspark.nn.tile_kernel import Tiles, can_tile, fits


class FrozenHead:
    """Rows ``[D, d]`` of the draft vocabulary.

    ``bf16``: factors are rounded to bf16 where the hardware multiplies and sums such tiles. Sums and results are fp32:
    rounded logits would make near distributions look apart (docs/lab_log.md).
    """

    def __init__(self, weight_Dd: Tensor, bf16: bool = False) -> None:
        self.weight = weight_Dd
        self._there: Tiles | None = None
        if bf16 and weight_Dd.device.type == "cpu" and can_tile() and all(map(fits, weight_Dd.shape)):
            self._there, self._back = Tiles(weight_Dd), Tiles(weight_Dd.T)

    def logits(self, hidden_Cd: Tensor) -> Tensor:
        """``[C, d]`` to ``[C, D]``, a tensor of its own."""
        return hidden_Cd @ self.weight.T if self._there is None else self._there(hidden_Cd)

    def back(self, grad_CD: Tensor) -> Tensor:
        """The gradient ``[C, d]`` of hidden states for that of their logits."""
        return grad_CD @ self.weight if self._there is None else self._back(grad_CD)
