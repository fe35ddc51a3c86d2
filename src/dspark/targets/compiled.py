"""A target's steps from token ids to last hidden states as one program, where it is made of what that knows.

Legend: T tokens, d hidden size, F = taps * d, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from dspark.kernels.machine import Call
from dspark.kernels.program import Rooms
from dspark.kernels.rows import can_row, copy_call, follow_call, norm_call
from dspark.kernels.seen import Seen
from dspark.nn.cache import KVCache
from dspark.nn.lean import LeanMLP, LeanNorm
from dspark.nn.shelf import Shelf
from dspark.nn.stack import Stack, StackLayer, StackProgram
from dspark.targets.lean import LeanAttention

FEW_ROWS = 64  # so many are a program even where whole texts are read in a hurry: Python costs more than attention
# The children of a layer in the order of a StackLayer's parts: Llama's, and Gemma's, whose additions are normed too.
_LAYOUTS = (
    ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
    (
        "input_layernorm",
        "self_attn",
        "pre_feedforward_layernorm",
        "mlp",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
)
_KINDS: dict[str, type[nn.Module]] = {"self_attn": LeanAttention, "mlp": LeanMLP}  # all others are norms


class CompiledSteps:
    """Embedding, layers and the norm behind them. Threads take turns."""

    def __init__(self, layers: Sequence[StackLayer], embedding_Vd: Tensor, scale: float, norm: LeanNorm) -> None:
        """``scale``: what rows of the embedding are multiplied by."""
        self.stack, self.norm = Stack(layers), norm
        self.embedding_Vd, self.scale = embedding_Vd, scale
        self._shelf: Shelf[_StepProgram] = Shelf()

    def run(
        self,
        ids_T: Tensor,
        rotations: Sequence[Tensor],
        cache: KVCache,
        rows_T: Tensor,
        seen: Seen,
        taps: tuple[int, ...],
    ) -> tuple[Tensor, Tensor | None]:
        """Last hidden states ``[T, d]`` and features ``[T, F]`` (None without ``taps``), as ``Target.forward``; other
        arguments as for ``Stack.run``. IndexError for ids that the embedding does not have: the program would read
        whatever lies there.
        """
        rows, ids = len(ids_T), ids_T.tolist()
        least, most = min(ids), max(ids)
        if least < 0 or most >= len(self.embedding_Vd):
            raise IndexError(f"token ids go from {least} to {most}; the target has 0 to {len(self.embedding_Vd) - 1}")
        few = rows <= FEW_ROWS
        with self._shelf.lock:
            prepared = self._shelf.get(
                cache,
                rows,
                (rows if few else 0, *taps),
                lambda rooms: (_StepProgram if few else _LongStep)(self, rows, taps, cache, rooms),
            )
            prepared.resize(rows)
            prepared.ids[:] = ids
            prepared.stack.aim(rotations, rows_T, seen)
            prepared.stack.program.run()
            features_TF = prepared.features_TF
            return prepared.hidden_Td.clone(), None if features_TF is None else features_TF.clone()


class _StepProgram:
    """The program for T rows and these taps, with what it reads and leaves."""

    def __init__(self, own: CompiledSteps, rows: int, taps: tuple[int, ...], cache: KVCache, rooms: Rooms) -> None:
        width, last = own.embedding_Vd.shape[1], len(own.stack.layers) - 1
        self._rooms, self._width, self._taps = rooms, width, taps
        self._see(rows)
        looked_T = rooms.room("looked up", 1, rows, torch.int64)
        split = () if self.features_TF is None else self.features_TF.split(width, dim=1)
        places = list(zip(taps, split, strict=True))

        def kept(tap: int, x_Td: Tensor) -> list[Call]:
            return [copy_call(x_Td, place) for each, place in places if each == tap]

        def ends(x_Td: Tensor) -> tuple[Sequence[Call], Sequence[Call]]:
            embed = follow_call(self.ids_T, None, looked_T, own.embedding_Vd, x_Td, own.scale)
            norm = norm_call(x_Td, self.hidden_Td, own.norm.weight, own.norm.eps)
            return [embed, *kept(-1, x_Td)], [norm, *kept(last, self.hidden_Td)]

        inner = [(tap, place) for tap, place in places if 0 <= tap < last]
        self.stack = StackProgram(own.stack.layers, rows, cache, rooms, ends, inner)

    def resize(self, rows: int) -> None:
        """It is for so many rows from now on."""
        assert rows == len(self.ids_T)

    def _see(self, rows: int) -> None:
        """What it reads and leaves, of so many rows."""
        self.ids_T = self._rooms.room("ids", 1, rows, torch.int64)
        self.ids = self.ids_T.numpy()
        self.hidden_Td = self._rooms.room("hidden", self._width, rows).view(rows, -1)
        self.features_TF: Tensor | None = None
        if self._taps:
            self.features_TF = self._rooms.room("features", len(self._taps) * self._width, rows).view(rows, -1)


class _LongStep(_StepProgram):
    """The program for more than ``FEW_ROWS`` rows: prompts are of all lengths, and to make it takes longer than to say
    how many there are.
    """

    def __init__(self, own: CompiledSteps, rows: int, taps: tuple[int, ...], cache: KVCache, rooms: Rooms) -> None:
        super().__init__(own, rows, taps, cache, rooms)
        fewer = [_StepProgram(own, rows - less, taps, cache, rooms) for less in (1, 2)]
        self._by_row = self.stack.program.by_row([each.stack.program for each in fewer])

    def resize(self, rows: int) -> None:
        """As many as its rooms have room for."""
        if more := rows - len(self.ids_T):
            self.stack.program.table += more * self._by_row
            self._see(rows)


def compiled_steps(base: Any, scale: float) -> CompiledSteps | None:
    """The steps of ``base`` as a program, embedded rows times ``scale``; whether it gives the numbers of its modules is
    found by running it, by others.
    """
    parts: list[Any] = [getattr(base, name, None) for name in ("layers", "embed_tokens", "rotary_emb", "norm")]
    if None in parts or not isinstance(base.embed_tokens, nn.Embedding) or not isinstance(base.norm, LeanNorm):
        return None
    embedding_Vd, norm = base.embed_tokens.weight.detach(), base.norm
    if not all(can_row(each, embedding_Vd.shape[1]) for each in (embedding_Vd, norm.weight)):
        return None
    rotations = rotations_of(base)
    layers = [_parts(layer, rotations.index(own)) for layer, own in zip(parts[0], _rotations(base), strict=True)]
    known = [layer for layer in layers if layer is not None and layer.compiles()]
    if len(known) < len(layers):
        return None
    scale *= float(getattr(base.embed_tokens, "embed_scale", 1.0))  # of Gemma's embedding
    return CompiledSteps(known, embedding_Vd, scale, norm)


def rotations_of(base: Any) -> list[tuple[str, ...]]:
    """What ``base.rotary_emb`` is given behind hidden states and positions, once for each kind of layers."""
    return list(dict.fromkeys(_rotations(base)))


def _rotations(base: Any) -> list[tuple[str, ...]]:
    """The same, layer by layer: Gemma 3 turns layers that see a window faster than those that see all."""
    if "layer_type" in signature(base.rotary_emb.forward).parameters:
        return [(kind,) for kind in base.config.layer_types]
    return [()] * len(base.layers)


def _parts(layer: nn.Module, rotation: int) -> StackLayer | None:
    """The children of a layer, where it has just those of a known layout and all of them are lean."""
    children: dict[str, Any] = dict(layer.named_children())
    for names in _LAYOUTS:
        if children.keys() == set(names) and all(isinstance(children[n], _KINDS.get(n, LeanNorm)) for n in names):
            return StackLayer(*(children[name] for name in names), rotation=rotation)
    return None
