"""A drafter's first weights, copied from the target it will draft for.

Started from the target's own last layers a drafter learns several times faster than from random weights. The
target comes as plain tensors: nothing here knows what model they are from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dspark.drafters.chain import ChainDrafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.foundation.errors import UserError

# Head norms that Qwen3 has and Llama lacks: they start as ones there.
_OPTIONAL = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}


@torch.no_grad()
def initialise_from_target(
    drafter: DSparkDrafter, layers: Sequence[Mapping[str, Tensor]], *, final_norm: Tensor, hidden_norm: Tensor
) -> None:
    """Overwrite all weights of ``drafter``.

    ``layers[i]``: the state dict of the target layer that draft layer i starts as (`input_layernorm.weight`,
    `self_attn.q_proj.weight`, `mlp.gate_proj.weight`, ...). ``final_norm [d]`` and ``hidden_norm [d]``: norm
    weights for the output and for ``H_ctx``. ``fc`` starts as the identity on the last tapped layer, the
    Markov bias as zero. Raises UserError that names the tensor where names or shapes differ.
    """
    wanted = drafter.config.num_hidden_layers
    if len(layers) != wanted:
        raise UserError(f"{len(layers)} source layers were given for {wanted} draft layers; give one for each")
    for number, (module, source) in enumerate(zip(drafter.layers, layers, strict=True)):
        _copy_layer(module, source, number)
    _copy(drafter.norm.weight, final_norm, "the final norm")
    _copy(drafter.hidden_norm.weight, hidden_norm, "the hidden norm")
    hidden = drafter.config.hidden_size
    drafter.fc.weight.zero_()
    drafter.fc.weight[:, -hidden:].copy_(torch.eye(hidden))
    drafter.markov_head.reset()
    if drafter.confidence_head is not None:
        drafter.confidence_head.reset()


@torch.no_grad()
def initialise_chain(drafter: ChainDrafter, layer: Mapping[str, Tensor], final_norm: Tensor) -> None:
    """Overwrite all weights of ``drafter``: its layer starts as the target's ``layer`` on the hidden state alone, which
    is that of the last tapped one. Tokens do not count yet, and their weights have a gradient. Raises as above.
    """
    _copy_layer(drafter.layer, drafter.layer.started_as(layer), 0)
    _copy(drafter.norm.weight, final_norm, "the final norm")
    drafter.reset()


def _copy_layer(module: nn.Module, source: Mapping[str, Tensor], number: int) -> None:
    parameters = dict(module.named_parameters())
    unknown = sorted(source.keys() - parameters.keys())
    missing = sorted(parameters.keys() - source.keys() - _OPTIONAL)
    if unknown or missing:
        parts = [f"has {', '.join(unknown)}"] if unknown else []
        parts += [f"lacks {', '.join(missing)}"] if missing else []
        raise UserError(
            f"source layer {number} {' and '.join(parts)}, unlike a draft layer; "
            "start from random weights for this target"
        )
    for name, parameter in parameters.items():
        if name in source:
            _copy(parameter, source[name], f"source layer {number}: {name}")
        else:
            nn.init.ones_(parameter)


def _copy(parameter: Tensor, source: Tensor, name: str) -> None:
    if parameter.shape != source.shape:
        raise UserError(
            f"{name} is {list(source.shape)}, the drafter's is {list(parameter.shape)}; "
            "give the drafter the target's own sizes (heads, head_dim, intermediate_size) to start from it"
        )
    parameter.copy_(source)
