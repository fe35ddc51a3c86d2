"""Many requests on the drafter at once: their context rows live in the blocks of a cache.

The blocks have the numbers of the target's own, so a request's table serves both, and what is shared, found again or
let go of is so for both.

Legend: R requests, K slots of a block, T committed positions, F = L*d tapped features, d hidden size, H key/value
heads, S rows, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dspark.drafters.choice import Chance, Drafted
from dspark.drafters.owed import OwedRows
from dspark.kernels.seen import Seen
from dspark.nn.blocks import BlockTable, Plan
from dspark.nn.cache import KVCache, KVLayer
from dspark.nn.context import BlockContext

if TYPE_CHECKING:
    from dspark.drafters.dspark import DSparkDrafter


class DrafterBlocks(OwedRows):
    """``blocks`` blocks of ``size`` context rows: keys and values for every layer."""

    reads_next = False

    def __init__(self, drafter: DSparkDrafter, blocks: int, size: int) -> None:
        self.drafter = drafter
        config = drafter.config
        layers = [KVLayer(config.num_key_value_heads, config.head_dim, i) for i in range(config.num_hidden_layers)]
        super().__init__(KVCache(layers, blocks, size, drafter.dtype, drafter.device), config.taps_width)

    def take(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor, following_T: Tensor) -> None:
        """Eq. 2 and 3."""
        drafter, cache = self.drafter, self.cache
        if drafter.compiled is not None:
            drafter.compiled.take(features_TF, positions_T, rows_T, cache)
            return
        for layer, new in enumerate(drafter.context_kv(drafter.project(features_TF[None]), positions_T[None])):
            cache.store(layer, rows_T, new.k[0], new.v[0])

    def hidden(self, anchors: Sequence[int], tables: Sequence[BlockTable], slots: int | None = None) -> Tensor:
        """The parallel stage for one block of each request: ``h [R, K, d]``.

        ``tables``: of everything before the anchors, with room for K positions more. ``slots``: K, that of the
        drafter's training if None.
        """
        self.settle(tables)
        drafter, cache, slots = self.drafter, self.cache, slots or self.drafter.config.block_size
        positions_T, rows_T, plan = self._places(tables, slots)
        if drafter.compiled is not None:
            return drafter.compiled.hidden(anchors, positions_T, rows_T, cache, plan)
        window = drafter.config.draft_window or None
        context = [BlockContext(*both, rows_T, plan, window) for both in zip(cache.keys, cache.values, strict=True)]
        anchors_R1 = torch.tensor(anchors, device=drafter.device)[:, None]
        starts_R1 = positions_T.view(len(anchors), -1)[:, :1]
        return drafter.block_hidden(anchors_R1, starts_R1, context, whole_context=True, slots=slots)[:, 0]

    def begin(self, anchors: Sequence[int], tables: Sequence[BlockTable], slots: int | None = None) -> BlockDrafting:
        """The parallel stage, and the sequential one to come."""
        return BlockDrafting(self.drafter, self.hidden(anchors, tables, slots))

    def draft(
        self,
        anchors: Sequence[int],
        tables: Sequence[BlockTable],
        slots: int | None = None,
        chance: Chance | None = None,
    ) -> Drafted:
        """Both stages at once."""
        self.settle(tables)
        program, slots = self.drafter.program, slots or self.drafter.config.block_size
        assert program is not None, "drafts of this drafter are no program"
        starts, rows = [table.length for table in tables], [table.rows(slots, self.cache.size) for table in tables]
        positions = [start + slot for slot in range(slots) for start in starts]
        rows_T = torch.tensor([row for some in zip(*rows, strict=True) for row in some])
        blocks = [table.blocks for table in tables]
        seen = Seen(blocks, starts, [slots] * len(tables), causal=False, interleaved=True)
        return program.run(anchors, slots, (positions, rows_T, seen), self.cache, chance)

    def _places(self, tables: Sequence[BlockTable], slots: int) -> tuple[Tensor, Tensor, Plan]:
        """Positions and rows of the blocks' slots, request by request, and what they see."""
        device, size = self.drafter.device, self.cache.size
        positions = [p for table in tables for p in range(table.length, table.length + slots)]
        rows = [row for table in tables for row in table.rows(slots, size)]
        plan = Plan(tables, [slots] * len(tables), size, device, causal=False)
        return torch.tensor(positions, device=device), torch.tensor(rows, device=device), plan

    def grown(self, size: int) -> DrafterBlocks:
        """The same rows in blocks of more room."""
        self.settle_all()
        bigger = DrafterBlocks(self.drafter, self.cache.blocks, size)
        for layer in range(self.drafter.config.num_hidden_layers):
            old, new = (each.cache.both(layer).unflatten(1, (each.cache.blocks, -1)) for each in (self, bigger))
            new[:, :, : old.shape[2]] = old
        return bigger


class BlockDrafting:
    """The sequential stage (Eq. 4) for the blocks of R requests: a slot's logits wait for the token before it alone."""

    def __init__(self, drafter: DSparkDrafter, hidden_RKd: Tensor) -> None:
        base_RKV = drafter.base_logits(hidden_RKd)
        self._base_RKV = base_RKV.to(torch.promote_types(base_RKV.dtype, drafter.dtype))
        self._drafter, self._hidden_RKd = drafter, hidden_RKd
        self._slot = 0
        self._state: Tensor | None = None

    @property
    def slots(self) -> int:
        """K."""
        return self._base_RKV.shape[1]

    def logits(self, previous_R: Tensor) -> Tensor:
        """``U_k + B_k [R, V_d]`` of the next slot."""
        base_RV, hidden_Rd = self._base_RKV[:, self._slot], self._hidden_RKd[:, self._slot]
        logits_RV, self._state = self._drafter.next_logits(base_RV, hidden_Rd, previous_R, self._state)
        self._slot += 1
        return logits_RV

    def confidence(self, previous_RK: Tensor, peaks_RK: Tensor) -> Tensor:
        """Of the confidence head, or the peaks where there is none."""
        return self._drafter.confidence(self._hidden_RKd, previous_RK, peaks_RK)
