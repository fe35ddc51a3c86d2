"""Whole drafts of greedy requests as one program: a slot's largest logit is the next slot's previous token.

For the vanilla Markov head. A draft of few tokens takes little longer than its weights take to be read, so nothing of
it is left to Python.

Legend: R requests, K slots of a block, T = K * R rows (slot by slot), d hidden size, r Markov rank, V_d draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.heads import MarkovHead
from dspark.nn.attention_kernel import Seen
from dspark.nn.cache import KVCache
from dspark.nn.machine import Call, Rooms
from dspark.nn.packed import PanelLinear
from dspark.nn.row_kernels import can_row, follow_call, norm_call, search_call
from dspark.nn.shelf import Shelf
from dspark.nn.stack import StackProgram, product_call

if TYPE_CHECKING:
    from dspark.drafters.compiled import CompiledBackbone
    from dspark.drafters.dspark import DSparkDrafter


class GreedyDraft:
    """Embedding, layers, base logits and chain of a packed drafter (Eq. 4 at temperature 0), and its confidence.

    Threads take turns.
    """

    def __init__(self, drafter: DSparkDrafter, backbone: CompiledBackbone) -> None:
        head, bias = drafter.packed_head, drafter.markov_head.markov_w2
        assert isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)
        self.backbone, self.head, self.bias = backbone, head, bias
        self.embedding, self.support = drafter.embedding, drafter.support
        self.previous = drafter.markov_head.markov_w1.weight.detach()
        self.confidence = drafter.read_confidence
        self._shelf: Shelf[_GreedyProgram] = Shelf()

    def run(
        self, anchors: Sequence[int], slots: int, positions_T: Tensor, rows_T: Tensor, seen: Seen, cache: KVCache
    ) -> tuple[Tensor, Tensor | None]:
        """Drafted ids ``int64 [K, R]`` of the target's vocabulary and confidence logits ``[K, R]`` (None: no head).

        ``positions_T``, ``rows_T`` and ``seen`` are of the blocks' slots, slot by slot; the blocks' own rows of
        ``cache`` are written. ArithmeticError where logits hold NaN.
        """
        rotation = self.backbone.rotations.at(positions_T)
        with self._shelf.lock:
            prepared = self.prepare(len(anchors), slots, cache)
            masks = [self.backbone.config.mask_token_id] * (len(positions_T) - len(anchors))
            prepared.tokens_T.copy_(torch.tensor([*anchors, *masks]))
            prepared.stack.aim(rotation, rows_T, seen)
            prepared.stack.program.run()
            if bool((prepared.found_KR < 0).any()):
                raise ArithmeticError("a draft's logits hold NaN: the drafter's weights or its features are broken")
            ids_KR = prepared.ids_KR.clone()
            confidence_KR = None
            if self.confidence is not None:
                confidence_KR = self.confidence.whole(prepared.confidence_KR, ids_KR[:-1])
        return ids_KR[1:], confidence_KR

    def prepare(self, requests: int, slots: int, cache: KVCache) -> _GreedyProgram:
        """The program for so many requests and slots."""
        rows = requests * slots
        return self._shelf.get(
            cache, rows, (requests, slots), lambda rooms: _GreedyProgram(self, requests, slots, cache, rooms)
        )


class _GreedyProgram:
    """The program for R requests and K slots, with what it reads and leaves."""

    def __init__(self, draft: GreedyDraft, requests: int, slots: int, cache: KVCache, rooms: Rooms) -> None:
        rows = requests * slots

        def room(name: str, width: int, count: int = rows, dtype: torch.dtype = torch.float32) -> Tensor:
            return rooms.room(name, width, count, dtype).view(count, width)

        self.tokens_T = rooms.room("tokens", 1, rows, torch.int64)
        self.found_KR = rooms.room("found", 1, rows, torch.int64).view(slots, requests)
        """Indices into the support, -1 for none."""
        self.ids_KR = rooms.room("ids", 2, rows, torch.int64)[: rows + requests].view(slots + 1, requests)
        """The anchors, then ids of the target's vocabulary."""
        looked_T = rooms.room("looked up", 1, rows, torch.int64)
        norm, confidence = draft.backbone.norm, draft.confidence
        hidden_Td, base_TV = room("hidden", draft.head.in_features), room("base", draft.head.panels.padded)
        logits_RV = room("logits", draft.head.panels.padded, requests)
        embedded_Rr = room("embedded", draft.bias.in_features, requests)
        calls: list[Call] = []
        if confidence is not None:
            assert isinstance(confidence.product, PanelLinear)
            confidence_TN = room("confidence", confidence.product.panels.padded)
            self.confidence_KR = confidence_TN[:, 0].view(slots, requests)
            calls.append(product_call(confidence.product, hidden_Td, confidence_TN, rooms))
        calls.append(product_call(draft.head, hidden_Td, base_TV, rooms))
        for slot in range(slots):
            base_RV = base_TV[slot * requests : (slot + 1) * requests]
            found_R, support = (self.found_KR[slot - 1], draft.support) if slot else (self.tokens_T[:requests], None)
            calls += [
                follow_call(found_R, support, self.ids_KR[slot], draft.previous, embedded_Rr),
                product_call(draft.bias, embedded_Rr, logits_RV, rooms, base_RV),
                search_call(logits_RV, self.found_KR[slot]),
            ]
        calls.append(follow_call(self.found_KR[-1], draft.support, self.ids_KR[-1], draft.previous, embedded_Rr))

        def ends(x_Td: Tensor) -> tuple[Sequence[Call], Sequence[Call]]:
            embed = follow_call(self.tokens_T, None, looked_T, draft.embedding, x_Td)
            return [embed], [norm_call(x_Td, hidden_Td, norm.weight, norm.eps), *calls]

        self.stack = StackProgram(draft.backbone.stack.layers, rows, cache, rooms, ends)


def greedy_draft(drafter: DSparkDrafter) -> GreedyDraft | None:
    """Drafts of a packed drafter as a program, where its parts are of the forms that one knows."""
    if drafter.compiled is None or type(drafter.markov_head) is not MarkovHead or drafter.config.markov_top_k:
        return None
    head, bias, previous = drafter.packed_head, drafter.markov_head.markov_w2, drafter.markov_head.markov_w1.weight
    if not (isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)):
        return None
    whole = head.panels.padded == head.out_features == bias.out_features and head.out_features % 32 == 0
    tables = all(can_row(table, table.shape[1]) for table in (previous, drafter.embedding))
    return GreedyDraft(drafter, drafter.compiled) if whole and tables else None
