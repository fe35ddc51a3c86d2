"""The gated feed-forward network of the Llama, Qwen and Gemma families."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from dspark.kernels.taught import can_gate, can_teach, gate_backward, gate_forward
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
        self.act, self._name = GATES[act], act

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., hidden]`` to ``[..., hidden]``."""
        x = for_products(x)
        out: Tensor = self.down_proj(self._gated(self.gate_proj(x), self.up_proj(x)))
        return out

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if can_gate(self._name) and can_teach(gate, gate.shape[-1]):
            compiled: Any = _CompiledGate.apply  # untyped in torch
            gated: Tensor = compiled(gate, up, self._name)
            return gated
        return self.act(gate) * up


class _CompiledGate(torch.autograd.Function):
    """``act(gate) * up`` as one pass, its gradients as another."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return gate_forward(gate, up, act)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return (*gate_backward(grad_outputs[0].contiguous(), gate, up, ctx.act), None)
