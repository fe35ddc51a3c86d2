"""A stack of layers as one program of kernel calls, for steps of few rows: no Python between two products.

Only for a stack whose every layer is ``x + attention(norm(x))`` and then ``x + mlp(norm(x))`` of lean modules.

Legend: T tokens, d hidden size, I inner width, N heads of queries, keys and values, Q of queries, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dspark.nn.attention_kernel import Seen, attention_call
from dspark.nn.cache import KVCache
from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.machine import Call, Program, Rooms, can_compile
from dspark.nn.packed import PanelLinear
from dspark.nn.panels import Panels
from dspark.nn.row_kernels import HeadNorms, can_row, gate_call, norm_call, turn_call

_KEPT = 32  # programs of a cache, one for each number of rows of late
_CALLS = 9  # of a layer


class Attention(Protocol):
    """An attention module as a program runs it: one product in, rotation of queries and keys, one product out.

    ``product`` gives the heads of queries, keys and values, D = ``width`` numbers each, of which the first ``rotated``
    are rotated and the first ``queries`` not cached; ``settings`` are those of ``block_attention.attend``.
    """

    product: nn.Module
    output: nn.Module
    queries: int
    rotated: int
    width: int
    layer_idx: int
    head_norms: HeadNorms | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class StackLayer:
    """One layer's parts."""

    input_norm: LeanNorm
    attention: Attention
    inner_norm: LeanNorm
    mlp: LeanMLP

    def compiles(self) -> bool:
        """Whether every part is of a form that a program knows."""
        norms, attention, mlp = (self.input_norm, self.inner_norm), self.attention, self.mlp
        weights = [norm.weight for norm in norms]
        weights += [] if attention.head_norms is None else list(attention.head_norms[:2])
        products = (attention.product, attention.output, mlp.both, mlp.down)
        whole = all(isinstance(each, PanelLinear) and each.panels.padded == each.out_features for each in products)
        rows = all(can_row(weight, weight.numel()) for weight in weights)
        return can_compile() and whole and rows and mlp.gate is not None and attention.width % 8 == 0


@dataclass
class _Prepared:
    """A program for one number of rows and one cache, with what it reads and writes."""

    program: Program
    x_Td: Tensor
    rotations: Tensor
    seen: Tensor


class Stack:
    """Layers that are run as one program. Threads take turns."""

    def __init__(self, layers: Sequence[StackLayer]) -> None:
        self._layers = list(layers)
        self._prepared: WeakKeyDictionary[KVCache, dict[tuple[int, int], _Prepared]] = WeakKeyDictionary()
        self._rooms = Rooms()
        self._lock = Lock()

    def run(
        self, x_Td: Tensor, rotation_T1C: Tensor, cache: KVCache, rows_T: Tensor, seen: Seen, taps: Sequence[int] = ()
    ) -> dict[int, Tensor]:
        """Outputs ``[T, d]`` of the layers in ``taps`` and of the last one, for embedded tokens ``x_Td``.

        Their keys and values are written to ``rows_T`` of ``cache``; ``rotation_T1C``: as ``lean.turn`` takes it.
        """
        rotates = rotation_T1C.dtype == torch.complex64 and rotation_T1C.is_contiguous()
        assert rotates and rows_T.dtype == torch.int64 and rows_T.is_contiguous()
        with self._lock:
            prepared = self._prepare(len(x_Td), cache)
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
        if self._rooms.too_small(rows):
            self._prepared.clear()
        known, key = self._prepared.setdefault(cache, {}), (rows, torch.get_num_threads())
        prepared = known.pop(key, None) or self._build(rows, cache)
        known[key] = prepared  # the latest last
        if len(known) > _KEPT:
            del known[next(iter(known))]
        return prepared

    @torch.inference_mode(False)  # what is kept here may be written to in either mode
    def _build(self, rows: int, cache: KVCache) -> _Prepared:
        def room(name: str, width: int) -> Tensor:
            return self._rooms.room(name, width, rows).view(rows, width)

        def product(linear: Any, source: Tensor, out: Tensor, more: Tensor | None = None) -> Call:
            panels: Panels = linear.panels
            return panels.call(source, out, more, self._rooms.fixed(panels.scratch(rows)))

        width = self._layers[0].input_norm.weight.numel()
        x_Td, normed_Td = room("x", width), room("normed", width)
        calls: list[Call] = []
        for layer in self._layers:
            own, mlp, norms = layer.attention, layer.mlp, (layer.input_norm, layer.inner_norm)
            assert mlp.gate is not None
            heads_TND = room("heads", _width(own.product)).unflatten(1, (-1, own.width))
            query_TQD = heads_TND[:, : own.queries]
            out_TQD = room("out", own.queries * own.width).view(query_TQD.shape)
            both, gated = room("both", _width(mlp.both)), room("gated", _width(mlp.both) // 2)
            calls += [
                norm_call(x_Td, normed_Td, norms[0].weight, norms[0].eps),
                product(own.product, normed_Td, heads_TND),
                turn_call(heads_TND, own.rotated, own.queries, cache.both(own.layer_idx), own.head_norms, 0, 0),
                _attention(own, query_TQD, cache, out_TQD),
                product(own.output, out_TQD.flatten(1), x_Td, x_Td),
                norm_call(x_Td, normed_Td, norms[1].weight, norms[1].eps),
                product(mlp.both, normed_Td, both),
                gate_call(both, gated, mlp.gate),
                product(mlp.down, gated, x_Td, x_Td),
            ]
        assert len(calls) == _CALLS * len(self._layers)
        program = Program(calls)
        rotations, seen = (_first_two(program.starts[number:-1:_CALLS]) for number in (2, 3))
        return _Prepared(program, x_Td, rotations, seen)


def _width(product: nn.Module) -> int:
    assert isinstance(product, PanelLinear)
    return product.out_features


def _attention(attention: Attention, query_TQD: Tensor, cache: KVCache, out_TQD: Tensor) -> Call:
    keys, values = cache.keys[attention.layer_idx], cache.values[attention.layer_idx]
    kernel, table = attention_call(query_TQD, keys, values, cache.size, out_TQD=out_TQD, **attention.settings)
    return kernel, (0, 0, *table)


def _first_two(starts: Sequence[int]) -> Tensor:
    return torch.tensor([[start, start + 1] for start in starts])
