"""One step's tokens of many requests, laid end to end without padding.

Legend: T tokens of the step, R requests, n tokens of one request, G query heads per key/value head, S cached positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.foundation.errors import UserError
from dspark.targets.cache import KVCache


@dataclass(frozen=True)
class Run:
    """Requests in neighbouring slots that bring equally many tokens: they share one attention call."""

    first_slot: int
    first_token: int
    count: int
    starts: tuple[int, ...]

    @property
    def requests(self) -> int:
        """Number of requests in the run."""
        return len(self.starts)

    @property
    def span(self) -> int:
        """Cached positions that the longest of them looks at, its own tokens included."""
        return max(self.starts) + self.count


class RaggedBatch:
    """Where each token of a step belongs; ``append`` of ``counts[i]`` tokens to ``slots[i]`` of the cache."""

    def __init__(self, cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> None:
        self.cache = cache
        self.slots = list(slots)
        self.counts = list(counts)
        self.starts = [cache.lengths[slot] for slot in self.slots]
        for start, count in zip(self.starts, self.counts, strict=True):
            if start + count > cache.capacity:
                raise UserError(
                    f"a request needs {start + count} positions but its cache slot holds {cache.capacity};"
                    " shorten the prompt or the answer, or give the cache more room"
                )
        device = cache.keys[0].device
        positions = [p for s, n in zip(self.starts, self.counts, strict=True) for p in range(s, s + n)]
        owners = [slot for slot, n in zip(self.slots, self.counts, strict=True) for _ in range(n)]
        self.positions_T = torch.tensor(positions, device=device)
        self.rows_T = torch.tensor(owners, device=device) * cache.capacity + self.positions_T
        self.runs = list(self._runs())
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}

    def commit(self) -> None:
        """Count the step's tokens as cached; called once after the forward pass."""
        for slot, start, count in zip(self.slots, self.starts, self.counts, strict=True):
            self.cache.lengths[slot] = start + count

    def mask(self, run: int, groups: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[R, 1, G*n, S]`` of a run (0 or -inf), None where every cached position is visible.

        Query ``i`` of a request that starts at ``s`` sees position ``j`` iff ``s + i - window < j <= s + i``.
        """
        key = (run, groups, window)
        if key not in self._masks:
            self._masks[key] = self._build_mask(self.runs[run], groups, window, dtype)
        return self._masks[key]

    def _build_mask(self, run: Run, groups: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        uniform = len(set(run.starts)) == 1 and run.count == 1
        if uniform and (window is None or run.span <= window):
            return None
        device = self.positions_T.device
        seen_S = torch.arange(run.span, device=device)
        query_Rn = torch.tensor(run.starts, device=device)[:, None] + torch.arange(run.count, device=device)
        visible_RnS = seen_S <= query_Rn[..., None]
        if window is not None:
            visible_RnS &= seen_S > query_Rn[..., None] - window
        mask_RnS = torch.zeros(visible_RnS.shape, dtype=dtype, device=device)
        mask_RnS.masked_fill_(~visible_RnS, float("-inf"))
        return mask_RnS.repeat(1, groups, 1)[:, None]

    def _runs(self) -> Iterator[Run]:
        first = 0
        token = 0
        for i in range(1, len(self.slots) + 1):
            joined = (
                i < len(self.slots) and self.slots[i] == self.slots[i - 1] + 1 and self.counts[i] == self.counts[first]
            )
            if joined:
                continue
            yield Run(self.slots[first], token, self.counts[first], tuple(self.starts[first:i]))
            token += self.counts[first] * (i - first)
            first = i
