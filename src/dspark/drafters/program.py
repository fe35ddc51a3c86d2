"""Whole drafts as one program: the token found in a slot is the next slot's previous token.

A draft of few tokens takes little longer than its weights take to be read, so nothing of it is left to Python.

Legend: R requests, K slots of a block, T = K * R rows (slot by slot), d hidden size, r Markov rank, V_d draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.choice import Chance, Choice, Drafted, can_choose
from dspark.drafters.frozen_heads import can_step, steps_of
from dspark.drafters.heads import NoMarkovHead
from dspark.kernels.machine import Call
from dspark.kernels.program import Rooms
from dspark.kernels.rows import can_row, follow_call, norm_call
from dspark.kernels.seen import Seen
from dspark.nn.cache import KVCache
from dspark.nn.packed import PanelLinear
from dspark.nn.shelf import Shelf
from dspark.nn.stack import StackProgram, product_call

if TYPE_CHECKING:
    from dspark.drafters.compiled import CompiledBackbone
    from dspark.drafters.dspark import DSparkDrafter


class DraftProgram:
    """Embedding, layers, base logits and chain of a packed drafter (Eq. 4), and its confidence.

    Threads take turns.
    """

    def __init__(self, drafter: DSparkDrafter, backbone: CompiledBackbone) -> None:
        assert isinstance(drafter.packed_head, PanelLinear)
        self.backbone, self.head = backbone, drafter.packed_head
        self.embedding, self.embedding_scale, self.support = drafter.embedding, drafter.embedding_scale, drafter.support
        self.markov, self.bias = drafter.markov_head, None
        """The sequential head and W_2; None without a sequential stage, which asks of previous tokens but their ids."""
        self.previous = self.embedding
        if not isinstance(drafter.markov_head, NoMarkovHead):
            self.bias, self.previous = self.markov.markov_w2, self.markov.markov_w1.weight.detach()
        self.confidence = drafter.read_confidence
        self._shelf: Shelf[_Program] = Shelf()

    def run(
        self,
        anchors: Sequence[int],
        slots: int,
        places: tuple[Sequence[int], Tensor, Seen],
        cache: KVCache,
        chance: Chance | None = None,
    ) -> Drafted:
        """A block for each anchor, its tokens the likeliest (temperature 0) or drawn.

        ``places``: positions and rows ``[T]`` of the blocks' slots and what they see, slot by slot; the blocks' own
        rows of ``cache`` are written. In a slot whose logits are no numbers it finds some token or other, and the peak
        is NaN.
        """
        positions, rows_T, seen = places
        rotation = self.backbone.rotations.at(positions)
        with self._shelf.lock:
            prepared = self.prepare(len(anchors), slots, cache, chance is not None)
            prepared.choice.load(anchors, chance)
            masks = [self.backbone.config.mask_token_id] * (len(positions) - len(anchors))
            prepared.tokens[:] = [*anchors, *masks]
            prepared.stack.aim((rotation,), rows_T, seen)
            prepared.stack.program.run()
            chosen = prepared.choice.chosen()
            confidence_KR = chosen.peaks_KR
            if self.confidence is not None:
                by_id = self.confidence.by_id
                confidence_KR = prepared.confidence + (by_id if len(by_id) == 1 else by_id[chosen.ids_KR[:-1]])
            return chosen.drafted(confidence_KR)

    def prepare(self, requests: int, slots: int, cache: KVCache, sampled: bool = False) -> _Program:
        """The program for so many requests and slots."""
        sizes = (requests, slots, int(sampled))
        return self._shelf.get(cache, requests * slots, sizes, lambda rooms: _Program(self, sizes, cache, rooms))


class _Program:
    """The program for R requests and K slots, sampled or not, with what it reads and leaves."""

    def __init__(self, draft: DraftProgram, sizes: tuple[int, int, int], cache: KVCache, rooms: Rooms) -> None:
        requests, slots, _ = sizes
        rows, width = requests * slots, draft.head.out_features

        def room(name: str, width: int, count: int = rows) -> Tensor:
            return rooms.room(name, width, count).view(count, width)

        self.choice = choice = Choice(sizes, draft.head, draft.support, rooms)
        tokens_T, looked_T = (rooms.room(name, 1, rows, torch.int64) for name in ("tokens", "looked up"))
        self.tokens = tokens_T.numpy()
        """What the block reads: the anchors, then masks."""
        base_TV, hidden_Td = room("base", width), room("hidden", draft.head.in_features)
        embedded_Rr = room("embedded", draft.previous.shape[1], requests)
        norm, confidence = draft.backbone.norm, draft.confidence
        calls: list[Call] = []
        if confidence is not None:
            assert isinstance(confidence.product, PanelLinear)
            confidence_TN = room("confidence", confidence.product.panels.padded)
            self.confidence = confidence_TN[:, 0].view(slots, requests).numpy()
            calls.append(product_call(confidence.product, hidden_Td, confidence_TN, rooms))
        calls.append(product_call(draft.head, hidden_Td, base_TV, rooms))
        ahead, steps = steps_of(draft.markov, hidden_Td, embedded_Rr, rooms)
        calls += ahead
        for slot in range(slots):
            base_RV = base_TV[slot * requests : (slot + 1) * requests]
            calls.append(choice.look_up(slot, draft.previous, embedded_Rr))
            if draft.bias is not None:
                step, summed_Rr = steps(slot)
                calls += [*step, product_call(draft.bias, summed_Rr, choice.logits_RV, rooms, base_RV)]
            calls += choice.choose(slot, base_RV if draft.bias is None else None)
        calls.append(choice.look_up(slots, draft.previous, embedded_Rr))

        def ends(x_Td: Tensor) -> tuple[Sequence[Call], Sequence[Call]]:
            embed = follow_call(tokens_T, None, looked_T, draft.embedding, x_Td, draft.embedding_scale)
            return [embed], [norm_call(x_Td, hidden_Td, norm.weight, norm.eps), *calls]

        self.stack = StackProgram(draft.backbone.stack.layers, rows, cache, rooms, ends)


def draft_program(drafter: DSparkDrafter) -> DraftProgram | None:
    """Drafts of a packed drafter as a program, where its parts are of the forms that one knows."""
    head, markov = drafter.packed_head, drafter.markov_head
    if drafter.compiled is None or not isinstance(head, PanelLinear) or not can_choose(head):
        return None
    if isinstance(markov, NoMarkovHead):
        return DraftProgram(drafter, drafter.compiled)
    if not can_step(markov) or drafter.config.markov_top_k or not isinstance(markov.markov_w2, PanelLinear):
        return None
    previous = markov.markov_w1.weight
    whole = head.out_features == markov.markov_w2.out_features and can_row(previous, previous.shape[1])
    return DraftProgram(drafter, drafter.compiled) if whole else None
