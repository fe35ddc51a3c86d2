"""Root-mean-square normalisation.

Legend: d width of the normalised axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from dspark.nn.precision import narrowed


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; computed in fp32, returned in the dtype of
    ``x`` (under autocast in fp32).
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d]`` to ``[..., d]``."""
        return narrowed(rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps), x)
