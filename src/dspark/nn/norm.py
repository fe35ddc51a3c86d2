"""Root-mean-square normalisation, alone and with what follows it.

Legend: d width of the normalised axis, N heads, D their size; leading axes are free.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from dspark.kernels.taught import Angles, can_teach, norm_backward, norm_forward
from dspark.nn.precision import for_products, product_dtype, under_autocast
from dspark.nn.rope import Rotary, rotate


class Norm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d]`` to ``[..., d]``."""

    def for_products(self, x: Tensor) -> Tensor:
        """The norm of ``x`` as the products under autocast take it (``precision.for_products``)."""
        return for_products(self(x))

    def turned(self, x: Tensor, at: Rotary) -> Tensor:
        """The norms of heads ``x [..., N, D]``, rotated to the positions of ``at``."""
        return rotate(self(x), at)


class RMSNorm(Norm):
    """Computed in fp32, returned in the dtype of ``x`` (under autocast in fp32). What follows it is the same pass where
    kernels can be compiled.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self._made(x, torch.float32 if under_autocast(x) else x.dtype)

    def for_products(self, x: Tensor) -> Tensor:
        return self._made(x, product_dtype(x))

    def turned(self, x: Tensor, at: Rotary) -> Tensor:
        return self._made(x, torch.float32 if under_autocast(x) else x.dtype, at)

    def _made(self, x: Tensor, dtype: torch.dtype, at: Rotary | None = None) -> Tensor:
        weight_d = self.weight.float()
        if can_teach(x, weight_d.numel()):
            compiled: Any = _CompiledNorm.apply  # untyped in torch
            made: Tensor = compiled(x, weight_d, self.eps, None if at is None else _angles(x, at), dtype)
            return made
        plain: Any = _Norm.apply
        normed: Tensor = plain(x.float(), weight_d, self.eps)
        return (normed if at is None else rotate(normed, at)).to(dtype)


def _angles(x: Tensor, at: Rotary) -> Angles:
    """Angles of the tokens of ``x [..., N, D]``, each once where they repeat along the first axes."""
    leading, own = x.shape[:-2], at.cos.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    shape = own if leading[len(leading) - len(own) :] == own else leading
    width = at.cos.shape[-1]
    cos, sin = (each.view(*own, width).expand(*shape, width).reshape(-1, width).contiguous() for each in at)
    return Angles(cos, sin, x.shape[-2])


class _CompiledNorm(torch.autograd.Function):
    """Norm, rotation and rounding as one pass, their gradients as another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_d: Tensor, eps: float, angles: Angles | None, dtype: torch.dtype) -> Tensor:
        out, inverse = norm_forward(x, weight_d, eps, angles, dtype)
        ctx.save_for_backward(x, weight_d, inverse)
        ctx.angles = angles
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_d, inverse = ctx.saved_tensors
        grad_x, grad_weight_d = norm_backward(grad_outputs[0].contiguous(), x, weight_d, inverse, ctx.angles)
        return grad_x, grad_weight_d, None, None, None


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
