"""A stack of layers as one program of kernel calls, for steps of any number of rows: no Python between two products.

Only for a stack whose every layer is ``x + attention(norm(x))`` and then ``x + mlp(norm(x))`` of lean modules; what is
added may be normed as well (Gemma).

Legend: T tokens, d hidden size, I inner width, N heads of queries, keys and values, Q of queries, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dspark.kernels.attention import attention_call
from dspark.kernels.machine import Call, can_compile
from dspark.kernels.program import Program, Rooms
from dspark.kernels.rows import HeadNorms, can_row, copy_call, gate_call, norm_call, turn_call
from dspark.kernels.seen import Seen
from dspark.nn.cache import KVCache
from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.packed import PanelLinear
from dspark.nn.shelf import Shelf

Ends = Callable[[Tensor], tuple[Sequence[Call], Sequence[Call]]]


def no_ends(_: Tensor) -> tuple[Sequence[Call], Sequence[Call]]:
    """The layers alone."""
    return (), ()


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
class ReadingLayer:
    """A layer's parts behind what its attention reads: ``x + attention(read)``, then ``x + mlp(norm(x))``; the last two
    norms are of what attention and MLP add, where the family has them.
    """

    attention: Attention
    inner_norm: LeanNorm
    mlp: LeanMLP
    attention_norm: LeanNorm | None = None
    mlp_norm: LeanNorm | None = None

    def compiles(self) -> bool:
        """Whether every part is of a form that a program knows."""
        attention, mlp = self.attention, self.mlp
        norms = (self.inner_norm, self.attention_norm, self.mlp_norm)
        weights = [norm.weight for norm in norms if norm is not None]
        weights += [] if attention.head_norms is None else list(attention.head_norms[:2])
        products = (attention.product, attention.output, mlp.both, mlp.down)
        whole = all(isinstance(each, PanelLinear) and each.panels.padded == each.out_features for each in products)
        rows = all(can_row(weight, weight.numel()) for weight in weights)
        return can_compile() and whole and rows and mlp.gate is not None and attention.width % 8 == 0

    def calls(self, x_Td: Tensor, read_Tw: Tensor, cache: KVCache, rooms: Rooms) -> list[Call]:
        """What turns ``x_Td`` into the layer's output; call number ``TURN`` rotates, the one behind it attends."""

        def room(name: str, width: int) -> Tensor:
            return rooms.room(name, width, len(x_Td)).view(len(x_Td), width)

        own, mlp, norm = self.attention, self.mlp, self.inner_norm
        assert mlp.gate is not None
        normed_Td = room("normed", x_Td.shape[1])
        heads_TND = room("heads", _width(own.product)).unflatten(1, (-1, own.width))
        query_TQD = heads_TND[:, : own.queries]
        out_TQD = room("out", own.queries * own.width).view(query_TQD.shape)
        both, gated = room("both", _width(mlp.both)), room("gated", _width(mlp.both) // 2)
        return [
            product_call(own.product, read_Tw, heads_TND, rooms),
            turn_call(heads_TND, own.rotated, own.queries, cache.both(own.layer_idx), own.head_norms, 0, 0),
            _attention(own, query_TQD, cache, out_TQD),
            *_added(own.output, out_TQD.flatten(1), x_Td, rooms, self.attention_norm, normed_Td),
            norm_call(x_Td, normed_Td, norm.weight, norm.eps),
            product_call(mlp.both, normed_Td, both, rooms),
            gate_call(both, gated, mlp.gate),
            *_added(mlp.down, gated, x_Td, rooms, self.mlp_norm, normed_Td),
        ]


@dataclass(frozen=True)
class StackLayer:
    """One layer's parts; its attention reads ``norm(x)``."""

    input_norm: LeanNorm
    attention: Attention
    inner_norm: LeanNorm
    mlp: LeanMLP
    attention_norm: LeanNorm | None = None
    mlp_norm: LeanNorm | None = None
    rotation: int = field(default=0, kw_only=True)
    """Which of a step's rotations is its own: layers of one model may turn at different speeds."""

    @property
    def behind_norm(self) -> ReadingLayer:
        """The layer without its first norm."""
        return ReadingLayer(self.attention, self.inner_norm, self.mlp, self.attention_norm, self.mlp_norm)

    def compiles(self) -> bool:
        """Whether every part is of a form that a program knows."""
        weight = self.input_norm.weight
        return self.behind_norm.compiles() and can_row(weight, weight.numel())

    def calls(self, x_Td: Tensor, cache: KVCache, rooms: Rooms) -> list[Call]:
        """A norm, and what follows it."""
        normed_Td = rooms.room("normed", x_Td.shape[1], len(x_Td)).view(x_Td.shape)
        norm = norm_call(x_Td, normed_Td, self.input_norm.weight, self.input_norm.eps)
        return [norm, *self.behind_norm.calls(x_Td, normed_Td, cache, rooms)]


TURN = 1  # which call of a ``ReadingLayer`` rotates


class Aim:
    """Where a program's layers are told which rows they work on; ``turns``: the call of each that rotates."""

    def __init__(self, program: Program, turns: Sequence[int]) -> None:
        self._table = program.table
        self._rotations, self._seen = program.places(turns, 2), program.places([turn + 1 for turn in turns], 3)

    def __call__(self, rotations: Sequence[Tensor], rows: Sequence[Tensor], seen: Sequence[Seen]) -> None:
        """One of each for all layers, or one for each layer; they must live until the program has run. See
        ``Stack.run``.
        """
        assert all(each.dtype == torch.complex64 and each.is_contiguous() for each in rotations)
        assert all(each.dtype == torch.int64 and each.is_contiguous() for each in rows)
        where = [(rotation.data_ptr(), row.data_ptr()) for rotation, row in zip(rotations, rows, strict=True)]
        self._table[self._rotations] = where
        self._table[self._seen] = [each.addresses for each in seen]


class StackProgram:
    """The calls of layers for one number of rows and one cache, with what they read and write.

    ``x_Td`` is what the first layer reads and the last one leaves. ``ends`` gives calls to be made before them, which
    fill it, and after them, which read it; ``kept``: layers, and where what they leave is copied to ``[T, d]``.
    """

    def __init__(
        self,
        layers: Sequence[StackLayer],
        rows: int,
        cache: KVCache,
        rooms: Rooms,
        ends: Ends = no_ends,
        kept: Sequence[tuple[int, Tensor]] = (),
    ) -> None:
        self.x_Td = rooms.room("x", layers[0].input_norm.weight.numel(), rows).view(rows, -1)
        before, after = ends(self.x_Td)
        own, turns = list(before), []
        for index, layer in enumerate(layers):
            turns.append(len(own) + 1 + TURN)
            own += layer.calls(self.x_Td, cache, rooms)
            own += [copy_call(self.x_Td, place) for tap, place in kept if tap == index]
        self.program, self._layers = Program([*own, *after]), (len(before), len(own))
        self._aim = Aim(self.program, turns)
        kinds = [layer.rotation for layer in layers]
        self._kinds = kinds if any(kinds) else [0]  # one for all, where they are alike

    def aim(self, rotations: Sequence[Tensor], rows_T: Tensor, seen: Seen) -> None:
        """Say where the step's rows belong; the arguments must live until it has run. See ``Stack.run``."""
        self._aim([rotations[kind] for kind in self._kinds], [rows_T] * len(self._kinds), [seen])

    def run_layers(self) -> None:
        """Run the layers, without what comes before and after them."""
        self.program.run(*self._layers)


class Stack:
    """Layers that are run as one program. Threads take turns."""

    def __init__(self, layers: Sequence[StackLayer]) -> None:
        self.layers = list(layers)
        self._shelf: Shelf[StackProgram] = Shelf()

    def run(
        self,
        x_Td: Tensor,
        rotations: Sequence[Tensor],
        cache: KVCache,
        rows_T: Tensor,
        seen: Seen,
    ) -> Tensor:
        """What the last layer leaves ``[T, d]``, for embedded tokens ``x_Td``.

        Their keys and values are written to ``rows_T`` of ``cache``; ``rotations``: as ``lean.turn`` takes them, one
        for each kind of layers (``StackLayer.rotation``).
        """
        with self._shelf.lock:
            prepared = self.prepare(len(x_Td), cache)
            prepared.x_Td.copy_(x_Td)
            prepared.aim(rotations, rows_T, seen)
            prepared.run_layers()
            return prepared.x_Td.clone()

    def prepare(self, rows: int, cache: KVCache) -> StackProgram:
        """The program for steps of that many rows."""
        return self._shelf.get(cache, rows, (rows,), lambda rooms: StackProgram(self.layers, rows, cache, rooms))


def product_call(linear: nn.Module, source: Tensor, out: Tensor, rooms: Rooms, more: Tensor | None = None) -> Call:
    """The product of the rows of ``source`` with a packed weight, plus ``more``, to ``out`` (``Panels.call``)."""
    assert isinstance(linear, PanelLinear)
    return linear.panels.shared_call(rooms, source, out, more)


def _added(
    product: nn.Module, source: Tensor, x_Td: Tensor, rooms: Rooms, norm: LeanNorm | None, free_Td: Tensor
) -> list[Call]:
    """A product added to the residual stream, behind ``norm`` where there is one; ``free_Td`` is written over then."""
    if norm is None:
        return [product_call(product, source, x_Td, rooms, x_Td)]
    return [product_call(product, source, free_Td, rooms), norm_call(free_Td, x_Td, norm.weight, norm.eps, adds=True)]


def _width(product: nn.Module) -> int:
    assert isinstance(product, PanelLinear)
    return product.out_features


def _attention(attention: Attention, query_TQD: Tensor, cache: KVCache, out_TQD: Tensor) -> Call:
    keys, values = cache.keys[attention.layer_idx], cache.values[attention.layer_idx]
    kernel, table = attention_call(query_TQD, keys, values, cache.size, out_TQD=out_TQD, **attention.settings)
    return kernel, (0, 0, 0, *table)
