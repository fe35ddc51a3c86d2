"""All layers of a target as one program of kernel calls, for steps of few rows: no Python between two products.

Only for a stack whose every layer is ``x + attention(norm(x))`` and then ``x + mlp(norm(x))`` of lean twins. That is
found by running it: a program stands only where it gave the modules' own numbers to the bit.

Legend: T tokens, d hidden size, I inner width, N heads of queries, keys and values, Q of queries, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dspark.nn.attention_kernel import attention_call
from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.machine import Call, Program, can_compile
from dspark.nn.packed import PanelLinear
from dspark.nn.panels import Panels
from dspark.nn.row_kernels import can_row, gate_call, norm_call, turn_call
from dspark.targets.cache import KVCache
from dspark.targets.lean import LeanAttention
from dspark.targets.ragged import RaggedBatch

MOST_ROWS = 64  # for more, what Python costs is lost beside the products
_KEPT = 32  # programs of a cache, one for each number of rows of late
_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_CALLS = 9  # of a layer


@dataclass
class _Prepared:
    """A program for one number of rows and one cache, with what it reads and writes."""

    program: Program
    x_Td: Tensor
    rotations: Tensor
    seen: Tensor
    kept: list[Tensor]


class CompiledLayers:
    """The layers of a target's base model, run as one program. Threads take turns."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = list(layers)
        self._prepared: WeakKeyDictionary[KVCache, dict[tuple[int, int], _Prepared]] = WeakKeyDictionary()
        self._turn = Lock()

    def run(self, x_Td: Tensor, rotation_T1C: Tensor, batch: RaggedBatch, taps: Sequence[int]) -> dict[int, Tensor]:
        """Outputs ``[T, d]`` of the layers in ``taps`` and of the last one, for embedded tokens ``x_Td``."""
        rows_T, seen = batch.rows_T, batch.plan.seen
        with self._turn:
            prepared = self._prepare(len(x_Td), batch.cache)
            prepared.x_Td.copy_(x_Td)
            table = prepared.program.table
            table[prepared.rotations] = torch.tensor((rotation_T1C.data_ptr(), rows_T.data_ptr()))
            table[prepared.seen] = torch.tensor((seen.blocks.data_ptr(), seen.tokens_T3.data_ptr()))
            found, done = {}, 0
            for tap in sorted({*taps, len(self._layers) - 1} - {-1}):
                prepared.program.run(done, _CALLS * (tap + 1))
                done = _CALLS * (tap + 1)
                found[tap] = prepared.x_Td.clone()
        return found

    def _prepare(self, rows: int, cache: KVCache) -> _Prepared:
        known, key = self._prepared.setdefault(cache, {}), (rows, torch.get_num_threads())
        prepared = known.pop(key, None) or self._build(rows, cache)
        known[key] = prepared  # the latest last
        if len(known) > _KEPT:
            del known[next(iter(known))]
        return prepared

    @torch.inference_mode(False)  # what is kept here may be written to in either mode
    def _build(self, rows: int, cache: KVCache) -> _Prepared:
        kept: dict[tuple[str, int], Tensor] = {}

        def room(name: str, width: int) -> Tensor:
            return kept.setdefault((name, width), torch.empty(rows, width))

        def product(panels: Panels, source: Tensor, out: Tensor, more: Tensor | None = None) -> Call:
            scratch = panels.scratch(rows)
            if scratch is not None:
                scratch = kept.setdefault(("scratch", scratch.shape[1]), scratch)
            return panels.call(source, out, more, scratch)

        width = self._layers[0].input_layernorm.weight.numel()
        x_Td, normed_Td = room("x", width), room("normed", width)
        calls: list[Call] = []
        for layer in self._layers:
            attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
            heads = room("heads", attention.product.out_features)
            heads_TND = heads.unflatten(1, (-1, attention.width))
            out_TQD = room("out", attention.output.in_features).unflatten(1, (-1, attention.width))
            both, gated = room("both", mlp.both.out_features), room("gated", mlp.down.in_features)
            calls += [
                norm_call(x_Td, normed_Td, norms[0].weight, norms[0].eps),
                product(attention.product.panels, normed_Td, heads),
                turn_call(heads_TND, attention.rotated, attention.queries, cache.both(attention.layer_idx), 0, 0),
                _attention(attention, heads_TND[:, : attention.queries], cache, out_TQD),
                product(attention.output.panels, out_TQD.flatten(1), x_Td, x_Td),
                norm_call(x_Td, normed_Td, norms[1].weight, norms[1].eps),
                product(mlp.both.panels, normed_Td, both),
                gate_call(both, gated, mlp.gate),
                product(mlp.down.panels, gated, x_Td, x_Td),
            ]
        program = Program(calls)
        rotations, seen = (_first_two(program.starts[number:-1:_CALLS]) for number in (2, 3))
        return _Prepared(program, x_Td, rotations, seen, list(kept.values()))


def _attention(attention: LeanAttention, query_TQD: Tensor, cache: KVCache, out_TQD: Tensor) -> Call:
    keys, values = cache.keys[attention.layer_idx], cache.values[attention.layer_idx]
    kernel, table = attention_call(query_TQD, keys, values, cache.size, out_TQD=out_TQD, **attention.settings)
    return kernel, (0, 0, *table)


def _first_two(starts: Sequence[int]) -> Tensor:
    return torch.tensor([[start, start + 1] for start in starts])


def compiled_layers(base: nn.Module) -> CompiledLayers | None:
    """The layers of ``base`` as a program, where they are made of what it knows; whether it is right, others ask."""
    parts: list[Any] = [getattr(base, name, None) for name in ("layers", "embed_tokens", "rotary_emb", "norm")]
    if not can_compile() or None in parts or not all(_known(layer) for layer in parts[0]):
        return None
    return CompiledLayers(parts[0])


def _known(layer: Any) -> bool:
    """Whether a layer has the four children of a Llama's, all of them lean and compiled."""
    if {name for name, _ in layer.named_children()} != _CHILDREN:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if not (isinstance(attention, LeanAttention) and isinstance(mlp, LeanMLP) and mlp.gate is not None):
        return False
    products = (attention.product, attention.output, mlp.both, mlp.down)
    if attention.norms or not all(isinstance(norm, LeanNorm) for norm in norms):
        return False
    whole = all(isinstance(each, PanelLinear) and each.panels.padded == each.out_features for each in products)
    return whole and all(can_row(norm.weight, norm.weight.numel()) for norm in norms) and attention.width % 8 == 0
