"""MTP-1: one drafted token from the target's own last hidden state, after DeepSeek-V3's multi-token prediction.

Legend: d hidden size; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dspark.drafters.chain import ChainDrafter, PairLayer
from dspark.drafters.compiled_chain import LeanJoin
from dspark.drafters.config import MTPConfig
from dspark.nn.layer import LayerShape
from dspark.nn.norm import RMSNorm


class MTPLayer(PairLayer):
    """``x = W [norm(h) ; norm(embed(x))]`` (2d -> d), then an ordinary pre-norm layer. DeepSeek's names."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, shape.hidden_size)
        self.hnorm = RMSNorm(shape.hidden_size, shape.eps)
        self.enorm = RMSNorm(shape.hidden_size, shape.eps)
        self.eh_proj = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.eps)

    def join(self, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        x: Tensor = self.eh_proj(torch.cat((self.hnorm(hidden), self.enorm(embedded)), dim=-1))
        return x, self.input_layernorm(x)

    def lean_join(self) -> LeanJoin:
        return LeanJoin({"hidden": self.hnorm, "embedded": self.enorm}, (self.eh_proj, self.input_layernorm))

    def started_as(self, layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        width = self.eh_proj.out_features
        own = {f"{name}.weight": torch.ones(width) for name in ("hnorm", "enorm")}
        return {**layer, **own, "eh_proj.weight": torch.eye(width, 2 * width)}


class MTPDrafter(ChainDrafter):
    """Pairs begin with what the target's head reads."""

    config_type = MTPConfig

    def make_layer(self, shape: LayerShape) -> MTPLayer:
        return MTPLayer(shape)
