"""What a target rounds on a CPU, and when: its weights as it is loaded, rows before they are multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.foundation.errors import UserError
from dspark.kernels.blocks import can_unpack
from dspark.kernels.matrix import has_units
from dspark.kernels.tiles import can_tile, fits
from dspark.kernels.whole import can_count
from dspark.nn.forms import in_blocks, rounded_to_bytes

_OF_ROWS = {torch.bfloat16: can_tile, torch.int16: can_count}


def rows_of(rounding: torch.dtype | None) -> torch.dtype | None:
    """What rows are rounded to where weights are to be ``rounding``, if this CPU has the instructions for it."""
    return rounding if rounding is not None and rounding in _OF_ROWS and _OF_ROWS[rounding]() else None


def shares_readings(rounds: torch.dtype | None) -> bool:
    """Whether rows that are rounded so share a reading of the weights, and 16 take little more time than one: bf16 on
    matrix units.
    """
    return rounds == torch.bfloat16 and has_units()


def rows_beside(rounds: torch.dtype | None) -> torch.dtype:
    """What a drafter's rows are rounded to beside a target whose own are ``rounds``: whole numbers, for which its
    weights take a byte each; beside bf16 on matrix units bf16, which is ahead where many draft (docs/lab_log.md).
    """
    return torch.bfloat16 if shares_readings(rounds) else torch.int16


def rounds_weights(precision: torch.dtype) -> bool:
    """Whether a CPU rounds weights to ``precision`` and keeps its sums in fp32. UserError for int16 where its
    instructions are missing.
    """
    if precision == torch.int16 and not can_count():
        raise UserError(
            "dtype int16 needs a CPU that multiplies 8-bit numbers (AVX512_VNNI or AVX_VNNI); use --dtype float32"
        )
    return precision in (torch.bfloat16, torch.float16, torch.int8, torch.int16)


def _products(model: PreTrainedModel) -> list[Tensor]:
    """Weights of products. The head gets one of its own, since what it shared with the embedding, and with drafters, is
    rounded in another way.
    """
    head: Any = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    linears = (each for each in model.modules() if type(each) is torch.nn.Linear)
    return [each.weight for each in linears if fits(each.in_features)]


def round_weights(model: PreTrainedModel, dtype: torch.dtype, name: str, rows: torch.dtype | None) -> None:
    """Round weights in place: all to half precision, or matrices to bytes; UserError where one is too large.

    Where ``rows`` are rounded, tiles round the weights of products themselves, be it when they are multiplied (blocks
    stay blocks until then); and whole numbers ask for products in blocks, and for nothing else.
    """
    every: list[Tensor] = [*model.parameters()]  # before the head gets one of its own
    if rows == torch.int16:
        every = [each for each in _products(model) if not in_blocks(each.data)]
    elif rows == torch.bfloat16 and can_unpack():
        spared = {id(each) for each in _products(model)}
        every = [each for each in every if id(each) not in spared]
    for parameter in every:
        if dtype in (torch.int8, torch.int16):
            rounded = rounded_to_bytes(parameter.data.float()) if parameter.dim() == 2 else parameter.data
        else:
            rounded = parameter.data.to(dtype)
        if not bool(rounded.isfinite().all()):
            raise UserError(f"{name} has weights too large for {str(dtype)[6:]}; use --dtype float32 or bfloat16")
        parameter.data = rounded.to(parameter.dtype)
