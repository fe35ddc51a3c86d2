"""Frozen layers made of few operations, for steps of a few rows.

There an operation costs more to call than to compute (docs/lab_log.md).

Legend: d width, T tokens, N heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dspark.kernels.machine import can_compile
from dspark.kernels.rows import HeadNorms, can_row, gate_name, gate_rows, norm_rows
from dspark.nn.mlp import GatedMLP
from dspark.nn.norm import Norm, RMSNorm
from dspark.nn.packed import frozen_linear


def stacked(linears: list[nn.Linear]) -> nn.Module:
    """Products of the same rows as one, results side by side; all of them have biases, or none has."""
    biases = [each.bias.detach() for each in linears if each.bias is not None]
    assert len(biases) in (0, len(linears)), "either all have biases or none"
    return frozen_linear(torch.cat([each.weight.detach() for each in linears]), torch.cat(biases) if biases else None)


class LeanNorm(Norm):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in fp32 at least, returned in the dtype of ``x``."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        size = weight.shape[-1]
        self.weight, self.eps = weight.detach(), eps
        # x / sqrt(sum / d + eps) = sqrt(d) x / sqrt(sum + d eps): two operations on numbers become constants.
        self._scale = self.weight.to(torch.promote_types(weight.dtype, torch.float32)) * math.sqrt(size)
        self._bias = torch.tensor(size * eps, dtype=self._scale.dtype, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d]`` to ``[..., d]``."""
        if self.weight.dtype == torch.float32 and can_row(x, len(self.weight)):
            return norm_rows(x, self.weight, self.eps)
        wide = x if x.dtype == self._scale.dtype else x.to(self._scale.dtype)
        inverse: Tensor = torch.linalg.vecdot(wide, wide).add_(self._bias).rsqrt_()
        normed = (wide * inverse.unsqueeze(-1)).mul_(self._scale)
        return normed if wide is x else normed.to(x.dtype)


def head_norms(queries: LeanNorm, keys: LeanNorm) -> HeadNorms:
    """Two norms of heads as the kernels take them."""
    return HeadNorms(queries.weight, keys.weight, (queries.eps, keys.eps))


class LeanMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``; gate and up are one product."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.both, self.down, self._act = stacked([gate, up]), frozen_linear(down.weight, down.bias), act
        self.gate = gate_name(act) if can_compile() else None
        """Which of the compiled gates ``act`` is."""

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d]`` to ``[..., d]``."""
        both = self.both(x)
        if self.gate is not None and can_row(both, both.shape[-1] // 2):
            gated_down: Tensor = self.down(gate_rows(both, self.gate))
            return gated_down
        gate, up = both.chunk(2, dim=-1)
        out: Tensor = self.down(self._act(gate).mul_(up))
        return out


def lean_drafter(module: nn.Module) -> None:
    """Replace the norms and MLPs of our own layers by lean ones, for inference only."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm):
                setattr(parent, name, lean_norm(child))
            elif isinstance(child, GatedMLP):
                setattr(parent, name, lean_mlp(child))


def lean_norm(norm: RMSNorm) -> LeanNorm:
    """One of our own norms, frozen."""
    return LeanNorm(norm.weight, norm.eps)


def lean_mlp(mlp: GatedMLP) -> LeanMLP:
    """One of our own MLPs, frozen."""
    return LeanMLP(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act)


def paired(head_dim: int) -> Tensor:
    """The order of a head's elements in which those that rotate together are neighbours: 0, D/2, 1, D/2 + 1, ..."""
    return torch.arange(head_dim).view(2, -1).T.flatten()


def turn(heads_TND: Tensor, rotation_T1C: Tensor) -> None:
    """Rotate heads of ``paired`` order in place: a pair is a complex number, so rotating it is one product.

    ``rotation_T1C`` complex, D/2 a token: ``cos + i sin`` of its angles. In fp32 where the heads are narrower.
    """
    wide = heads_TND if heads_TND.element_size() >= 4 else heads_TND.float()
    tokens, heads, width = wide.shape
    torch.view_as_complex(wide.view(tokens, heads, width // 2, 2)).mul_(rotation_T1C)
    if wide is not heads_TND:
        heads_TND.copy_(wide)
