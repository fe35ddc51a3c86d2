"""The sequential stage of greedy requests as one program: a slot's largest logit is the next slot's previous token.

For the vanilla Markov head.

Legend: R requests, K slots of a block, T = K * R rows (slot by slot), d hidden size, r Markov rank, V_d draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.heads import MarkovHead
from dspark.nn.machine import Call, Program, Rooms
from dspark.nn.packed import PanelLinear
from dspark.nn.panels import Panels
from dspark.nn.row_kernels import can_row, follow_call, search_call

if TYPE_CHECKING:
    from dspark.drafters.dspark import DSparkDrafter

_KEPT = 32  # programs, one for each number of requests and of slots of late


@dataclass
class _Prepared:
    program: Program
    hidden_Td: Tensor
    found_KR: Tensor
    ids_KR: Tensor


class GreedyChain:
    """Base logits and the chain of a packed drafter (Eq. 4 at temperature 0). Threads take turns."""

    def __init__(self, drafter: DSparkDrafter) -> None:
        head, bias = drafter.packed_head, drafter.markov_head.markov_w2
        assert isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)
        self._head, self._bias = head.panels, bias.panels
        self._embedding = drafter.markov_head.markov_w1.weight.detach()
        self._support = drafter.support
        self._prepared: dict[tuple[int, int, int], _Prepared] = {}
        self._rooms = Rooms()
        self._lock = Lock()

    def run(self, hidden_RKd: Tensor, anchors: Sequence[int]) -> Tensor:
        """Drafted ids ``int64 [K, R]`` of the target's vocabulary; ArithmeticError where logits hold NaN."""
        slots = hidden_RKd.shape[1]
        with self._lock:
            prepared = self._prepare(len(anchors), slots)
            prepared.hidden_Td.view(slots, len(anchors), -1).copy_(hidden_RKd.transpose(0, 1))
            prepared.found_KR[0] = torch.tensor(anchors)
            prepared.program.run()
            if bool((prepared.found_KR < 0).any()):
                raise ArithmeticError("a draft's logits hold NaN: the drafter's weights or its features are broken")
            return prepared.ids_KR[1:].clone()

    def _prepare(self, requests: int, slots: int) -> _Prepared:
        if self._rooms.too_small(requests):
            self._prepared.clear()
        key = (requests, slots, torch.get_num_threads())
        prepared = self._prepared.pop(key, None) or self._build(requests, slots)
        self._prepared[key] = prepared
        if len(self._prepared) > _KEPT:
            del self._prepared[next(iter(self._prepared))]
        return prepared

    @torch.inference_mode(False)  # what is kept here may be written to in either mode
    def _build(self, requests: int, slots: int) -> _Prepared:
        head, bias = self._head, self._bias

        def room(name: str, rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            flat = self._rooms.room(name, rows * width, requests, dtype)
            return flat.view(rows * requests, width)

        hidden_Td, base_TV = room("hidden", slots, head.width), room("base", slots, head.padded)
        logits_RV, embedded_Rr = room("logits", 1, head.padded), room("embedded", 1, bias.width)
        # Found: the anchors, then indices into the support; ids: the same as ids of the target.
        found_KR, ids_KR = (room(name, slots + 1, 1, torch.int64).view(-1, requests) for name in ("found", "ids"))

        def product(panels: Panels, source: Tensor, out: Tensor, more: Tensor | None) -> Call:
            return panels.call(source, out, more, self._rooms.fixed(panels.scratch(len(source))))

        def follow(slot: int) -> Call:
            support = None if slot == 0 else self._support
            return follow_call(found_KR[slot], support, ids_KR[slot], self._embedding, embedded_Rr)

        calls = [product(head, hidden_Td, base_TV, None)]
        for slot in range(slots):
            base_RV = base_TV[slot * requests : (slot + 1) * requests]
            calls += [
                follow(slot),
                product(bias, embedded_Rr, logits_RV, base_RV),
                search_call(logits_RV, found_KR[slot + 1]),
            ]
        return _Prepared(Program([*calls, follow(slots)]), hidden_Td, found_KR, ids_KR)


def greedy_chain(drafter: DSparkDrafter) -> GreedyChain | None:
    """The chain of a packed drafter as a program, where its parts are of the forms that one knows."""
    if drafter.compiled is None or type(drafter.markov_head) is not MarkovHead or drafter.config.markov_top_k:
        return None
    head, bias, embedding = drafter.packed_head, drafter.markov_head.markov_w2, drafter.markov_head.markov_w1.weight
    if not (isinstance(head, PanelLinear) and isinstance(bias, PanelLinear)):
        return None
    whole = head.panels.padded == head.out_features == bias.out_features and head.out_features % 32 == 0
    return GreedyChain(drafter) if whole and can_row(embedding, embedding.shape[1]) else None
