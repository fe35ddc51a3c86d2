"""The gated feed-forward network of the Llama, Qwen and Gemma families."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from dspark.nn.precision import for_products

GATES: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu_pytorch_tanh": partial(gelu, approximate="tanh")}
"""By transformers' names."""


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))`` without biases; ``[..., hidden]`` to ``[..., hidden]``."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str = "silu") -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.act = GATES[act]

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., hidden]`` to ``[..., hidden]``."""
        x = for_products(x)
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out
