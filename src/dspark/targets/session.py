"""One request on the target: the state that the reference loop extends and rolls back.

Legend: N tokens fed, F tapped features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dspark.speculation.loop import Step
from dspark.targets.model import Target
from dspark.targets.ragged import RaggedBatch

# Prompts are run in pieces of at most this many tokens: memory stays bounded, results do not change (but for
# a target that multiplies many rows otherwise than few).
PREFILL_CHUNK = 512


class TargetSession:
    """K/V cache of one request; ``extend`` appends ids, ``truncate`` forgets rejected ones."""

    def __init__(self, target: Target, capacity: int, taps: Sequence[int] = ()) -> None:
        self._target = target
        self._taps = tuple(taps)
        self._cache = target.new_cache(blocks=1, size=capacity)
        (self._table,) = self._cache.tables()

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._table.length

    def extend(self, ids: list[int], logits: int) -> Step:
        """Run ``ids`` after what is cached; logits ``[logits, V]`` of the last rows, features ``[N, F]`` of all
        rows.
        """
        hidden, features = [], []
        with torch.inference_mode():
            for first in range(0, len(ids), PREFILL_CHUNK):
                chunk = torch.tensor(ids[first : first + PREFILL_CHUNK], device=self._target.device)
                batch = RaggedBatch(self._cache, [self._table], [len(chunk)])
                step = self._target.forward(chunk, batch, self._taps)
                hidden.append(step.hidden_TD)
                if step.features_TF is not None:
                    features.append(step.features_TF)
            last = torch.cat(hidden)[len(ids) - logits :]
            return Step(self._target.head(last), torch.cat(features) if features else None)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions."""
        self._table.truncate(length)
