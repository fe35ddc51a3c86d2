"""Frozen linear layers in oneDNN's blocked weight layout: the fast fp32 path of a CPU without bf16 units.

``torch.nn.functional.linear`` hands fp32 products of few rows to a general matrix product that re-reads and re-orders
the weight at every call; a weight re-ordered once serves 1 and 8 rows at nearly the same cost (docs/lab_log.md). The
same sums in another order: results agree with ``linear`` to fp32 rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The layout is chosen by oneDNN for this many rows; 64 was the best or equal best from 1 to 64 rows.
ROWS_HINT = 64


class PackedLinear(nn.Module):
    """A frozen ``y = x W^T + b`` whose weight lives in oneDNN's own layout; not differentiable, not saveable."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` fp32 to ``[..., out]``."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def can_pack(weight: Tensor) -> bool:
    """Whether this weight can be packed here: fp32 on a CPU whose torch was built with oneDNN."""
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def pack_linears(module: nn.Module) -> int:
    """Replace every packable ``nn.Linear`` below ``module`` in place; returns how many were replaced.

    For inference only: the originals are dropped, so the weights can't be trained or saved afterwards.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_pack(child.weight):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
                replaced += 1
    return replaced
