"""One step's tokens of many requests, laid end to end without padding.

Legend: T tokens of the step, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable, FixedPlan, Plan
from dspark.nn.cache import KVCache


class Step:
    """Where each token of a step belongs: its position, its row of ``cache``, and what it looks at."""

    def __init__(self, cache: KVCache, positions_T: Tensor, rows_T: Tensor, plan: Plan | FixedPlan) -> None:
        self.cache, self.positions_T, self.rows_T, self.plan = cache, positions_T, rows_T, plan
        self._rotations: dict[int, tuple[Tensor, Tensor]] = {}

    def rotation(self, cos_1TD: Tensor, sin_1TD: Tensor) -> Tensor:
        """``complex_of`` them; made once for all layers."""
        known = self._rotations.get(id(cos_1TD))
        if known is None or known[0] is not cos_1TD:
            known = self._rotations[id(cos_1TD)] = (cos_1TD, complex_of(cos_1TD, sin_1TD))
        return known[1]


class RaggedBatch(Step):
    """A step that continues requests by the next ``counts[i]`` positions of ``tables[i]``.

    UserError where a request's blocks have no room for them.
    """

    plan: Plan

    def __init__(self, cache: KVCache, tables: Sequence[BlockTable], counts: Sequence[int]) -> None:
        self.tables = list(tables)
        self.counts = list(counts)
        for table, count in self.parts:
            room = len(table.blocks) * cache.size
            if table.length + count > room:
                raise UserError(
                    f"a request needs {table.length + count} positions but its part of the cache holds {room};"
                    " shorten the prompt or the answer, or give the cache more room"
                )
        device = cache.keys[0].device
        self.positions = [p for table, count in self.parts for p in range(table.length, table.length + count)]
        positions_T = torch.tensor(self.positions, device=device)
        rows_T = torch.tensor([row for table, n in self.parts for row in table.rows(n, cache.size)], device=device)
        plan = Plan(self.tables, self.counts, cache.size, device, exact=cache.exact)
        super().__init__(cache, positions_T, rows_T, plan)

    @property
    def parts(self) -> list[tuple[BlockTable, int]]:
        """Each request's table and how many tokens it brings."""
        return list(zip(self.tables, self.counts, strict=True))

    def commit(self) -> None:
        """Count the step's tokens as cached; called once after the forward pass."""
        for table, count in self.parts:
            table.length += count


def complex_of(cos_1TD: Tensor, sin_1TD: Tensor) -> Tensor:
    """``cos + i sin``, complex ``[T, 1, D/2]``, of rotated halves as transformers has them (both are the same)."""
    cos, sin = (each[0, :, None, : each.shape[-1] // 2] for each in (cos_1TD, sin_1TD))
    wide = torch.promote_types(cos.dtype, torch.float32)
    return torch.complex(cos.to(wide), sin.to(wide))
