"""Root-mean-square normalisation.

Legend: d width of the normalised axis; leading axes are free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
        normed: Any = _Norm.apply  # untyped in torch
        return narrowed(normed(x.float(), self.weight.float(), self.eps), x)


class _Norm(torch.autograd.Function):
    """Forward and backward in a third of the operations that autograd makes of the formula, all fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        inverse = (x * x).mean(dim=-1, keepdim=True).add_(eps).rsqrt_()  # no vecdot: autocast would round its factors
        ctx.save_for_backward(x, weight_d, inverse)
        normed: Tensor = (x * inverse).mul_(weight_d)
        return normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_d, inverse = ctx.saved_tensors
        (grad,) = grad_outputs
        unit = x * inverse
        weighted = grad * weight_d
        along = (weighted * unit).mean(dim=-1, keepdim=True).neg_()
        grad_weight_d = (grad * unit).flatten(0, -2).sum(dim=0)
        return weighted.addcmul_(unit, along).mul_(inverse), grad_weight_d, None
