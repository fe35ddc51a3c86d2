"""The sequential heads of a packed drafter: what of their products needs no token is made for all slots at once.

A head's steps are the same whether they are asked for one by one or are calls of a program, to the bit.

Legend: R requests, K slots of a block, T = K * R rows (slot by slot), d hidden size, r Markov rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dspark.drafters.heads import GatedMarkovHead, MarkovHead, NoMarkovHead, RNNHead
from dspark.kernels.machine import Call, lanes
from dspark.kernels.mixed import gated, gated_call, recur_call, recurred
from dspark.kernels.program import Rooms
from dspark.nn.packed import frozen_linear
from dspark.nn.stack import product_call

# The calls of a slot, which turn ``e_k [R, r]`` into the ``m_k [R, r]`` that comes with them.
Steps = Callable[[int], tuple[list[Call], Tensor]]


class FrozenGatedHead(MarkovHead):
    """``GatedMarkovHead`` whose product is one of hidden states and one of what was looked up."""

    def __init__(self, head: GatedMarkovHead) -> None:
        nn.Module.__init__(self)
        self.markov_w1, self.markov_w2 = head.markov_w1, head.markov_w2
        weight, rank = head.gate_proj.weight.detach(), head.markov_w1.embedding_dim
        self.of_hidden = frozen_linear(weight[:, :-rank].contiguous(), head.gate_proj.bias)
        self.of_embedded = frozen_linear(weight[:, -rank:].contiguous())

    def step(self, hidden: Tensor, embedded: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return gated(self.of_embedded(embedded) + self.of_hidden(hidden), embedded.contiguous()), None

    def steps(self, hidden_Td: Tensor, embedded_Rr: Tensor, rooms: Rooms) -> tuple[list[Call], Steps]:
        """The calls before the first slot, and those of each."""
        ahead_Tr = _room(rooms, "gates of hidden", embedded_Rr.shape[1], len(hidden_Td))
        gate_Rr, summed_Rr = (_room(rooms, name, embedded_Rr.shape[1], len(embedded_Rr)) for name in ("gate", "summed"))

        def of_slot(slot: int) -> tuple[list[Call], Tensor]:
            mine_Rr = ahead_Tr[slot * len(embedded_Rr) :][: len(embedded_Rr)]
            opened = product_call(self.of_embedded, embedded_Rr, gate_Rr, rooms, mine_Rr)
            return [opened, gated_call(gate_Rr, embedded_Rr, summed_Rr)], summed_Rr

        return [product_call(self.of_hidden, hidden_Td, ahead_Tr, rooms)], of_slot


class FrozenRNNHead(MarkovHead):
    """``RNNHead`` whose product is one of states, one of what was looked up and one of hidden states."""

    def __init__(self, head: RNNHead) -> None:
        nn.Module.__init__(self)
        self.markov_w1, self.markov_w2 = head.markov_w1, head.markov_w2
        weight, rank = head.joint_proj.weight.detach(), head.markov_w1.embedding_dim
        of_state, of_embedded, of_hidden = weight.split((rank, rank, weight.shape[1] - 2 * rank), dim=1)
        self.of_hidden = frozen_linear(of_hidden.contiguous(), head.joint_proj.bias)
        self.of_embedded, self.of_state = (frozen_linear(each.contiguous()) for each in (of_embedded, of_state))

    def step(self, hidden: Tensor, embedded: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        joint = self.of_embedded(embedded) + self.of_hidden(hidden)
        return recurred(joint if state is None else self.of_state(state) + joint, state)

    def steps(self, hidden_Td: Tensor, embedded_Rr: Tensor, rooms: Rooms) -> tuple[list[Call], Steps]:
        """As ``FrozenGatedHead.steps``."""
        requests, rank = embedded_Rr.shape
        ahead_T3r = _room(rooms, "joint of hidden", 3 * rank, len(hidden_Td))
        joint_R3r = _room(rooms, "joint", 3 * rank, requests)
        state_Rr, summed_Rr = (_room(rooms, name, rank, requests) for name in ("state", "summed"))

        def of_slot(slot: int) -> tuple[list[Call], Tensor]:
            mine_R3r = ahead_T3r[slot * requests :][:requests]
            calls = [product_call(self.of_embedded, embedded_Rr, joint_R3r, rooms, mine_R3r)]
            if slot:
                calls.append(product_call(self.of_state, state_Rr, joint_R3r, rooms, joint_R3r))
            return [*calls, recur_call(joint_R3r, state_Rr, summed_Rr, first=not slot)], summed_Rr

        return [product_call(self.of_hidden, hidden_Td, ahead_T3r, rooms)], of_slot


def frozen_head(head: MarkovHead) -> MarkovHead:
    """The head as a program runs it, where it knows how; else as it is. Only where kernels can be compiled."""
    if head.output.shape[1] % lanes():
        return head
    if type(head) is GatedMarkovHead:
        return FrozenGatedHead(head)
    return FrozenRNNHead(head) if type(head) is RNNHead else head


def can_step(head: MarkovHead) -> bool:
    """Whether ``steps_of`` knows it."""
    return type(head) in (MarkovHead, NoMarkovHead, FrozenGatedHead, FrozenRNNHead)


def steps_of(head: MarkovHead, hidden_Td: Tensor, embedded_Rr: Tensor, rooms: Rooms) -> tuple[list[Call], Steps]:
    """Calls before the first slot, and those of each slot, for any head that ``can_step``."""
    if isinstance(head, FrozenGatedHead | FrozenRNNHead):
        return head.steps(hidden_Td, embedded_Rr, rooms)
    return [], lambda slot: ([], embedded_Rr)


def _room(rooms: Rooms, name: str, width: int, rows: int) -> Tensor:
    return rooms.room(name, width, rows, torch.float32).view(rows, width)
