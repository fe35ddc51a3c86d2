"""Many requests on the drafter at once: their context rows live in the blocks of a cache.

The blocks have the numbers of the target's own, so a request's table serves both, and what is shared, found again or
let go of is so for both.

Legend: R requests, K slots of a block, T committed positions, F = L*d tapped features, d hidden size, H key/value
heads, S rows, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.drafters.dspark import DSparkDrafter
from dspark.nn.blocks import BlockTable, Plan
from dspark.nn.context import BlockContext

_WAITING = 64  # features of so many tokens are taken over at once


class DrafterBlocks:
    """``blocks`` blocks of ``size`` context rows: ``[H, S, D]`` keys and values for every layer."""

    def __init__(self, drafter: DSparkDrafter, blocks: int, size: int) -> None:
        self.drafter, self.size = drafter, size
        config = drafter.config
        shape = (config.num_key_value_heads, blocks * size, config.head_dim)
        self.layers = [
            tuple(torch.zeros(shape, dtype=drafter.dtype, device=drafter.device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting_rows: set[int] = set()

    def extend(self, features_TF: Tensor, positions_T: Tensor, rows_T: Tensor) -> None:
        """Take over the target's tapped features of committed positions (Eq. 2 and 3), to be kept at ``rows_T``.

        They wait for the next draft, or until they are many: a call costs the same for one as for a few dozen.
        """
        rows = set(rows_T.tolist())
        if rows & self._waiting_rows:  # given to somebody else in the meantime: in the order they came
            self._take()
        self._waiting.append((features_TF, positions_T, rows_T))
        self._waiting_rows |= rows
        if len(self._waiting_rows) >= _WAITING:
            self._take()

    def _take(self) -> None:
        if not self._waiting:
            return
        features_TF, positions_T, rows_T = (torch.cat(each) for each in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_rows = [], set()
        drafter = self.drafter
        taps = features_TF.to(device=drafter.device, dtype=drafter.dtype)[None]
        new = drafter.context_kv(drafter.project(taps), positions_T[None])
        for (keys_HSD, values_HSD), rows in zip(self.layers, new, strict=True):
            keys_HSD.index_copy_(1, rows_T, rows.k[0])
            values_HSD.index_copy_(1, rows_T, rows.v[0])

    def hidden(self, anchors: Sequence[int], tables: Sequence[BlockTable]) -> Tensor:
        """The parallel stage for one block of each request: ``h [R, K, d]``.

        ``tables``: of everything before the anchors, with room for K positions more.
        """
        self._take()
        device, slots = self.drafter.device, self.drafter.config.block_size
        plan = Plan(tables, [slots] * len(tables), self.size, device, causal=False)
        rows_T = torch.tensor([row for table in tables for row in table.rows(slots, self.size)], device=device)
        context = [BlockContext(keys, values, rows_T, plan) for keys, values in self.layers]
        anchor_ids = torch.tensor(anchors, device=device)[:, None]
        positions = torch.tensor([table.length for table in tables], device=device)[:, None]
        return self.drafter.block_hidden(anchor_ids, positions, context, whole_context=True)[:, 0]
