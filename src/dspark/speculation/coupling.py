"""The coupled mode: target and draft draw with the same noise, so that a seed means one text under any schedule.

At every output position each id v waits for a time E_v, exponential with mean one and a function of (request seed,
position) alone. Whoever has the law p there takes argmax p_v / E_v, which is argmax(log p_v + Gumbel noise) and a draw
from p. Given the noise nothing is left to chance: a draft stands while it is the target's own token, and the text is
that of plain decoding whatever was drafted, verified or thrown away on the way (spec section 9).

Shapes: `_NV` successive output positions times the vocabulary, or times a draft's support.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from dspark.speculation.sampling import greedy_ids

# Positions whose noise is kept: the usual block and the token behind it. What was drafted is verified with the same
# rows, and what was rejected comes again in the next round.
_KEPT = 8


class Coupling:
    """The noise of one request over the ids of the target's ``vocabulary``."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self._seed, self._vocabulary = seed, vocabulary
        self._rows: dict[int, Tensor] = {}

    def noise(self, position: int) -> Tensor:
        """E float64[V] of an output position, 0 being the token that prefill yields.

        float64, since it is the smallest numbers that win: of 49,152 in fp32 one is exactly 0 in about every
        200th row, and would make its id the token however unlikely.
        """
        if position not in self._rows:
            key = hashlib.blake2b(f"{self._seed}/{position}".encode(), digest_size=16).digest()
            numbers = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
            row_V = torch.from_numpy(numbers.standard_exponential(self._vocabulary))
            while len(self._rows) >= _KEPT:
                del self._rows[next(iter(self._rows))]
            self._rows[position] = row_V.clamp_(min=torch.finfo(torch.float64).tiny)  # so that 0 / E is 0
        return self._rows[position]

    def odds(self, p_NV: Tensor, first: int, support: Tensor | None = None) -> Tensor:
        """p / E float64[N, V] under laws p[N, V] of the positions from ``first`` on.

        ``support``: the target's ids int64[V] of p's columns; None where they are all of them. Ids of probability 0
        have odds 0.
        """
        noise_NV = torch.stack([self.noise(first + n) for n in range(len(p_NV))]).to(p_NV.device)
        return p_NV / (noise_NV if support is None else noise_NV[:, support])

    def picks(self, p_NV: Tensor, first: int, support: Tensor | None = None) -> Tensor:
        """Columns int64[N] with the largest odds, the lowest one at ties; arguments as for ``odds``."""
        return greedy_ids(self.odds(p_NV, first, support))

    def law(self, p_NV: Tensor, first: int, support: Tensor | None = None) -> Tensor:
        """What is left of p[N, V] once the noise is known: the one-hot of ``picks``."""
        return torch.zeros_like(p_NV).scatter_(-1, self.picks(p_NV, first, support)[:, None], 1.0)
