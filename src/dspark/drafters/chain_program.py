"""Whole autoregressive drafts as one program: what a slot's layer leaves is what the next one begins with.

Legend: R requests, K slots, d hidden size, V_d draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dspark.drafters.choice import Chance, Choice, Drafted, can_choose
from dspark.kernels.machine import Call
from dspark.kernels.program import Program, Rooms
from dspark.kernels.rows import norm_call
from dspark.kernels.seen import Seen
from dspark.nn.cache import KVCache
from dspark.nn.packed import PanelLinear
from dspark.nn.shelf import Shelf
from dspark.nn.stack import Aim, product_call

if TYPE_CHECKING:
    from dspark.drafters.chain import ChainDrafter
    from dspark.drafters.compiled_chain import CompiledChain


class ChainProgram:
    """Embedding, layer, logits and choice of a packed drafter, slot after slot. Threads take turns."""

    def __init__(self, compiled: CompiledChain, head: PanelLinear, support: Tensor | None) -> None:
        self.compiled, self.head, self.support = compiled, head, support
        self._shelf: Shelf[_Program] = Shelf()

    def run(
        self,
        anchors: Sequence[int],
        hidden_Rd: Tensor,
        places: tuple[Tensor, Tensor, list[Seen]],
        cache: KVCache,
        chance: Chance | None = None,
    ) -> Drafted:
        """A draft behind each anchor, its tokens the likeliest (temperature 0) or drawn.

        ``hidden_Rd``: of the last committed pairs. ``places``: positions and rows ``[K, R]`` of the pairs, and what
        each slot's see; these rows of ``cache`` are written. ArithmeticError where logits hold NaN.
        """
        positions_KR, rows_KR, seen = places
        slots, requests = rows_KR.shape
        rotations = self.compiled.rotations.at(positions_KR.flatten().tolist()).split(requests)
        with self._shelf.lock:
            prepared = self.prepare(requests, slots, cache, chance is not None)
            prepared.choice.load(anchors, chance)
            prepared.x_Rd.copy_(hidden_Rd)
            prepared.aim(rotations, list(rows_KR), seen)
            prepared.program.run()
            chosen = prepared.choice.chosen()
            return chosen.drafted(chosen.peaks_KR)

    def prepare(self, requests: int, slots: int, cache: KVCache, sampled: bool = False) -> _Program:
        """The program for so many requests and slots."""
        sizes = (requests, slots, int(sampled))
        return self._shelf.get(cache, requests * slots, sizes, lambda rooms: _Program(self, sizes, cache, rooms))


class _Program:
    """The program for R requests and K slots, sampled or not."""

    def __init__(self, draft: ChainProgram, sizes: tuple[int, int, int], cache: KVCache, rooms: Rooms) -> None:
        requests, slots, _ = sizes
        width, norm = draft.head.in_features, draft.compiled.norm
        self.choice = choice = Choice(sizes, draft.head, draft.support, rooms)
        self.x_Rd, embedded_Rd, normed_Rd = (
            rooms.room(name, width, requests).view(requests, -1) for name in ("x", "embedded", "hidden")
        )
        layer, turn = draft.compiled.slot_calls(self.x_Rd, embedded_Rd, cache, rooms)
        table = draft.compiled.embedding, embedded_Rd, draft.compiled.embedding_scale
        calls: list[Call] = []
        turns: list[int] = []
        for slot in range(slots):
            turns.append(len(calls) + 1 + turn)
            calls += [
                choice.look_up(slot, *table),
                *layer,
                norm_call(self.x_Rd, normed_Rd, norm.weight, norm.eps),
                product_call(draft.head, normed_Rd, choice.logits_RV, rooms),
                *choice.choose(slot),
            ]
        calls.append(choice.look_up(slots, *table))
        self.program = Program(calls)
        self.aim = Aim(self.program, turns)


def chain_program(drafter: ChainDrafter) -> ChainProgram | None:
    """Drafts of a packed drafter as a program, where its parts are of the forms that one knows."""
    head = drafter.packed_head
    if drafter.compiled is None or not isinstance(head, PanelLinear) or not can_choose(head):
        return None
    return ChainProgram(drafter.compiled, head, drafter.support)
