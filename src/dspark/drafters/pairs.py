"""Pairs of many requests on an autoregressive drafter: committed ones in the blocks of a cache, and drafts behind them.

Legend: R requests, K slots, T committed positions, F = L*d tapped features, d hidden size, V_d draft vocabulary, S
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.choice import Chance, Drafted
from dspark.drafters.owed import OwedRows
from dspark.nn.blocks import BlockTable, Plan
from dspark.nn.cache import KVCache, KVLayer
from dspark.nn.context import BlockContext

if TYPE_CHECKING:
    from dspark.drafters.chain import ChainDrafter


class ChainRoom(OwedRows):
    """``blocks`` blocks of ``size`` pairs of committed positions: keys, values, and the hidden states that they began
    with.
    """

    reads_next = True

    def __init__(self, drafter: ChainDrafter, blocks: int, size: int) -> None:
        self.drafter, config = drafter, drafter.config
        layer = KVLayer(config.num_key_value_heads, config.head_dim, 0)
        super().__init__(KVCache([layer], blocks, size, drafter.dtype, drafter.device), config.taps_width)
        self.hidden_Sd = torch.zeros(blocks * size, config.hidden_size, dtype=drafter.dtype, device=drafter.device)

    def extend(
        self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor | None = None
    ) -> None:
        assert following_T is not None, "a pair is a hidden state and the token behind it"
        super().extend(features_TF, positions_T, rows_T, following_T)

    def take(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor) -> None:
        drafter = self.drafter
        if drafter.compiled is not None:
            drafter.compiled.take(features_TF, following_T, (positions_T, rows_T), self.cache, self.hidden_Sd)
            return
        hidden_Td = drafter.project(features_TF)
        at = drafter.rotary(positions_T[None])
        new = drafter.layer.rows(hidden_Td[None], drafter.embed(following_T)[None], at)
        self.cache.store(0, rows_T, new.k[0], new.v[0])
        self.hidden_Sd[rows_T] = hidden_Td

    def begin(self, anchors: Sequence[int], tables: Sequence[BlockTable], slots: int | None = None) -> ChainDrafting:
        self.settle(tables)
        return ChainDrafting(self, tables, slots or self.drafter.config.block_size)

    def draft(
        self,
        anchors: Sequence[int],
        tables: Sequence[BlockTable],
        slots: int | None = None,
        chance: Chance | None = None,
    ) -> Drafted:
        self.settle(tables)
        program, slots = self.drafter.program, slots or self.drafter.config.block_size
        assert program is not None, "drafts of this drafter are no program"
        before, size, device = _before_anchors(tables), self.cache.size, self.drafter.device
        rows_KR = torch.tensor([table.rows(slots, size) for table in before], device=device).T.contiguous()
        starts_R = torch.tensor([table.length for table in before], device=device)
        positions_KR = torch.arange(slots, device=device)[:, None] + starts_R
        seen = Plan(before, [slots] * len(before), size, device).seen.by_slot(slots)
        return program.run(anchors, self.hidden_Sd[rows_KR[0]], (positions_KR, rows_KR, seen), self.cache, chance)

    def grown(self, size: int) -> ChainRoom:
        self.settle_all()
        bigger, blocks = ChainRoom(self.drafter, self.cache.blocks, size), self.cache.blocks
        old, new = (each.cache.both(0).unflatten(1, (blocks, -1)) for each in (self, bigger))
        new[:, :, : old.shape[2]] = old
        bigger.hidden_Sd.unflatten(0, (blocks, -1))[:, : self.cache.size] = self.hidden_Sd.unflatten(0, (blocks, -1))
        return bigger


class ChainDrafting:
    """Blocks of R requests: the first logits are those of the last committed pair, whose token is the anchor; rows
    behind it are the drafter's own, and the next committed ones overwrite them.
    """

    def __init__(self, room: ChainRoom, tables: Sequence[BlockTable], slots: int) -> None:
        self.slots, self._room, self._tables = slots, room, _before_anchors(tables)
        self._hidden_Rd = room.hidden_Sd[self._rows()]

    def logits(self, previous_R: Tensor) -> Tensor:
        drafter, cache, tables = self._room.drafter, self._room.cache, self._tables
        plan, rows_R = Plan(tables, [1] * len(tables), cache.size, drafter.device), self._rows()
        positions_R = torch.tensor([table.length for table in tables], device=drafter.device)
        if drafter.compiled is not None:
            places = positions_R, rows_R, plan.seen
            self._hidden_Rd = drafter.compiled.step(self._hidden_Rd, previous_R, places, cache)
        else:
            context = BlockContext(cache.keys[0], cache.values[0], rows_R, plan)
            hidden_R11d, embedded_R11d = (each[:, None, None] for each in (self._hidden_Rd, drafter.embed(previous_R)))
            out_R11d = drafter.layer(hidden_R11d, embedded_R11d, drafter.rotary(positions_R[:, None, None]), context)
            self._hidden_Rd = out_R11d[:, 0, 0]
        self._tables = [BlockTable(table.blocks, table.length + 1) for table in tables]
        logits_RV = drafter.base_logits(drafter.norm(self._hidden_Rd))
        return logits_RV.to(torch.promote_types(logits_RV.dtype, drafter.dtype))

    def confidence(self, previous_RK: Tensor, peaks_RK: Tensor) -> Tensor:
        return peaks_RK

    def _rows(self) -> Tensor:
        """Of the pairs that come next."""
        rows = [row for table in self._tables for row in table.rows(1, self._room.cache.size)]
        return torch.tensor(rows, device=self._room.drafter.device)


def _before_anchors(tables: Sequence[BlockTable]) -> list[BlockTable]:
    """Up to the last committed pairs, which are drafted from."""
    assert all(table.length for table in tables), "there is no pair before the first token"
    return [BlockTable(table.blocks, table.length - 1) for table in tables]
