"""An autoregressive drafter's layer on compiled kernels: the same sums as ``chain``, no Python between its products.

Legend: T pairs, R requests, F = L*d tapped features, d hidden size, H key/value heads, S rows, D head size, w width of
what attention reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from dspark.drafters.compiled import LeanBlockAttention, context_weight
from dspark.kernels.machine import Call
from dspark.kernels.program import Program, Rooms
from dspark.kernels.rows import follow_call, norm_call, turn_call
from dspark.kernels.seen import Seen
from dspark.nn.cache import KVCache
from dspark.nn.lean import lean_mlp, lean_norm
from dspark.nn.norm import RMSNorm
from dspark.nn.packed import frozen_linear
from dspark.nn.rope import RotationTable, rotary
from dspark.nn.shelf import Shelf
from dspark.nn.stack import TURN, Aim, ReadingLayer, product_call

if TYPE_CHECKING:
    from dspark.drafters.chain import ChainDrafter, PairLayer

Half = Literal["hidden", "embedded"]


class LeanJoin(nn.Module):
    """``PairLayer.join`` as calls: two norms side by side and, where there is a product, what it makes of them, normed
    for attention.
    """

    def __init__(self, norms: Mapping[Half, RMSNorm], projection: tuple[nn.Linear, RMSNorm] | None = None) -> None:
        """``norms``: of a pair's halves, in the order in which these stand. ``projection``: of both (2d -> d), and the
        norm behind it.
        """
        super().__init__()
        self._norms = {half: lean_norm(norm) for half, norm in norms.items()}
        self.product = None if projection is None else frozen_linear(projection[0].weight)
        self.norm = None if projection is None else lean_norm(projection[1])

    def calls(self, hidden_Td: Tensor, embedded_Td: Tensor, x_Td: Tensor, rooms: Rooms) -> tuple[Tensor, list[Call]]:
        """What attention reads ``[T, w]``, and what writes it. A product leaves the residual stream in ``x_Td``, which
        may be ``hidden_Td``; without one the hidden states are that.
        """
        rows, width = hidden_Td.shape
        pair_Tw = rooms.room("pair", 2 * width, rows).view(rows, -1)
        given: dict[Half, Tensor] = {"hidden": hidden_Td, "embedded": embedded_Td}
        calls = [
            norm_call(given[half], out_Td, norm.weight, norm.eps)
            for (half, norm), out_Td in zip(self._norms.items(), pair_Tw.split(width, dim=1), strict=True)
        ]
        if self.product is None or self.norm is None:
            return pair_Tw, calls
        read_Td = rooms.room("read", width, rows).view(rows, -1)
        calls.append(product_call(self.product, pair_Tw, x_Td, rooms))
        return read_Td, [*calls, norm_call(x_Td, read_Td, self.norm.weight, self.norm.eps)]


class CompiledChain(nn.Module):
    """Context rows and hidden states of pairs, frozen, and the final norm; only for a drafter that ``compiles``.

    Threads take turns.
    """

    def __init__(self, drafter: ChainDrafter, layer: PairLayer) -> None:
        """``layer``: the drafter's, as it was before packing."""
        super().__init__()
        config = drafter.config
        self.config, self.embedding, self.embedding_scale = config, drafter.embedding, drafter.embedding_scale
        self.projection, self.join = drafter.projection, layer.lean_join()
        self.attention = LeanBlockAttention(layer.self_attn, 0, None)
        self.context = frozen_linear(context_weight(layer.self_attn))
        self.mlp = lean_mlp(layer.mlp)
        self.norm = lean_norm(drafter.norm)
        self.layer = ReadingLayer(self.attention, lean_norm(layer.post_attention_layernorm), self.mlp)
        self._taken: Shelf[_TakeProgram] = Shelf()
        self._steps: Shelf[_StepProgram] = Shelf()
        self.rotations = RotationTable(lambda at: torch.complex(*rotary(at, config.head_dim, config.rope_theta)))

    def take(
        self, features_TF: Tensor, following_T: Tensor, places: tuple[Tensor, Tensor], cache: KVCache, hidden_Sd: Tensor
    ) -> None:
        """Write committed pairs: keys and values, and the hidden states that they begin with to ``hidden_Sd``.

        ``places``: their positions and rows.
        """
        positions_T, rows_T = places
        rotation, rows = self.rotations.at(positions_T.tolist(), positions_T), len(rows_T)
        with self._taken.lock:
            program = self._taken.get(
                cache, rows, (rows,), lambda rooms: _TakeProgram(self, rows, cache, hidden_Sd, rooms)
            )
            program.run(features_TF, following_T, rotation, rows_T)

    def step(
        self, hidden_Rd: Tensor, previous_R: Tensor, places: tuple[Tensor, Tensor, Seen], cache: KVCache
    ) -> Tensor:
        """The next hidden states ``[R, d]`` of one pair of each request, whose keys and values go to its row.

        ``places``: positions and rows of the pairs, and what they see.
        """
        positions_R, rows_R, seen = places
        rotation, requests = self.rotations.at(positions_R.tolist(), positions_R), len(rows_R)
        with self._steps.lock:
            step = self._steps.get(
                cache, requests, (requests,), lambda rooms: _StepProgram(self, requests, cache, rooms)
            )
            step.x_Rd.copy_(hidden_Rd)
            step.tokens_R.copy_(previous_R)
            step.aim([rotation], [rows_R], [seen])
            step.program.run()
            return step.x_Rd.clone()

    def slot_calls(self, x_Rd: Tensor, embedded_Rd: Tensor, cache: KVCache, rooms: Rooms) -> tuple[list[Call], int]:
        """What turns hidden states into the next ones, in place, and which of these calls rotates (``stack.Aim``)."""
        read_Rw, calls = self.join.calls(x_Rd, embedded_Rd, x_Rd, rooms)
        return [*calls, *self.layer.calls(x_Rd, read_Rw, cache, rooms)], len(calls) + TURN


class _TakeProgram:
    """The calls of ``take`` for T pairs."""

    def __init__(self, own: CompiledChain, rows: int, cache: KVCache, hidden_Sd: Tensor, rooms: Rooms) -> None:
        def room(name: str, width: int) -> Tensor:
            return rooms.room(name, width, rows).view(rows, width)

        width, heads, size = hidden_Sd.shape[1], own.config.num_key_value_heads, own.config.head_dim
        self._features_TF = hidden_Td = room("features", own.config.taps_width)
        self._following_T, looked_T = (rooms.room(name, 1, rows, torch.int64) for name in ("following", "looked up"))
        embedded_Td, both = room("embedded", width), room("both", 2 * heads * size)
        calls = [follow_call(self._following_T, None, looked_T, own.embedding, embedded_Td, own.embedding_scale)]
        if own.projection is not None:
            hidden_Td = room("hidden", width)
            calls.append(product_call(own.projection, self._features_TF, hidden_Td, rooms))
        read_Tw, join = own.join.calls(hidden_Td, embedded_Td, room("x", width), rooms)
        both_THD, norms = both.view(rows, 2 * heads, size), own.attention.head_norms
        calls += [*join, product_call(own.context, read_Tw, both, rooms)]
        turns = [
            turn_call(both_THD, heads, 0, cache.both(0), norms, 0, 0),
            # A hidden state is kept as a head that is not rotated.
            turn_call(hidden_Td[:, None], 0, 0, hidden_Sd[None], None, 0, 0),
        ]
        self._program = Program([*calls, *turns])
        self._turns = self._program.places(range(len(calls), len(calls) + len(turns)), 2)

    def run(self, features_TF: Tensor, following_T: Tensor, rotation_T1C: Tensor, rows_T: Tensor) -> None:
        """See ``CompiledChain.take``."""
        self._features_TF.copy_(features_TF)
        self._following_T.copy_(following_T)
        self._program.table[self._turns] = rotation_T1C.data_ptr(), rows_T.data_ptr()
        self._program.run()


class _StepProgram:
    """The calls of ``step`` for R requests; ``x_Rd`` is read and left."""

    def __init__(self, own: CompiledChain, requests: int, cache: KVCache, rooms: Rooms) -> None:
        width = own.config.hidden_size
        self.x_Rd, embedded_Rd = (rooms.room(name, width, requests).view(requests, -1) for name in ("x", "embedded"))
        self.tokens_R, looked_R = (rooms.room(name, 1, requests, torch.int64) for name in ("tokens", "looked up"))
        embed = follow_call(self.tokens_R, None, looked_R, own.embedding, embedded_Rd, own.embedding_scale)
        calls, turn = own.slot_calls(self.x_Rd, embedded_Rd, cache, rooms)
        self.program = Program([embed, *calls])
        self.aim = Aim(self.program, [1 + turn])
