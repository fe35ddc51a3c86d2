"""The gated feed-forward network of the Llama and Qwen families."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from dspark.nn.precision import for_products


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases; ``[..., hidden]`` to ``[..., hidden]``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., hidden]`` to ``[..., hidden]``."""
        x = for_products(x)
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out
