"""Eagle3: an autoregressive drafter on several tapped layers of its target.

Legend: F = L*d tapped features, d hidden size; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dspark.drafters.chain import ChainDrafter, PairLayer
from dspark.drafters.compiled_chain import LeanJoin
from dspark.drafters.config import Eagle3Config
from dspark.nn.ends import Ends
from dspark.nn.layer import LayerShape
from dspark.nn.norm import RMSNorm

# Products with what attention reads.
_READING = {f"self_attn.{name}_proj.weight" for name in "qkv"}


class Eagle3Layer(PairLayer):
    """Attention reads ``[norm(embed(x)) ; norm(h)]``; the residual stream is h itself."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, 2 * shape.hidden_size)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.eps)
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.eps)

    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, torch.cat((self.input_layernorm(embedded), self.hidden_norm(hidden)), dim=-1)

    def lean_join(self) -> LeanJoin:
        return LeanJoin({"embedded": self.input_layernorm, "hidden": self.hidden_norm})

    def started_as(self, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = dict(layer)
        if "input_layernorm.weight" in own:
            own["hidden_norm.weight"] = own["input_layernorm.weight"]
            own["input_layernorm.weight"] = torch.ones_like(own["hidden_norm.weight"])
        for name in _READING & own.keys():
            own[name] = torch.cat((torch.zeros_like(own[name]), own[name]), dim=1)
        return own


class Eagle3Drafter(ChainDrafter):
    """Pairs begin with ``h = W_c [H^(l1); ...; H^(lL)]``. The state dict has DeepSpec's names."""

    config_type = Eagle3Config

    def __init__(self, config: Eagle3Config, ends: Ends) -> None:
        super().__init__(config, ends)
        self.fc = nn.Linear(config.taps_width, config.hidden_size, bias=False)

    def reset(self) -> None:
        with torch.no_grad():
            nn.init.zeros_(self.fc.weight)[:, -self.config.hidden_size :].fill_diagonal_(1.0)

    def make_layer(self, shape: LayerShape) -> Eagle3Layer:
        return Eagle3Layer(shape)

    @property
    def projection(self) -> nn.Module:
        return self.fc
