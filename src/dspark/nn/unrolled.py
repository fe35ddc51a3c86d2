"""What a step of training-time test looks at: the causal first chunk, and of each later chunk its own position alone.

Legend: B sequences, S rows, A positions that are unrolled, i steps behind the first so far, H key/value heads, G query
heads of each, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dspark.nn.context import ContextRows
from dspark.nn.visibility import BlockGroup


class UnrolledContext:
    """The steps at A positions of each sequence, one after another (a ``Context`` for blocks of one slot).

    Step 0 at position t is row t of ``rows`` and sees rows 0..t; step i at t sees those, and the steps 1..i at t: as
    drafting does, where everything up to t is committed and what is behind it is the drafter's own.
    """

    def __init__(self, rows: ContextRows, positions_BA: Tensor) -> None:
        self._rows = ContextRows(*map(_wide, rows))
        self._unseen_BA1S = torch.arange(rows.length, device=positions_BA.device) > positions_BA[..., None, None]
        self._own: tuple[list[Tensor], list[Tensor]] | None = None

    def attend(self, q_BHGAKD: Tensor, k_BHAKD: Tensor, v_BHAKD: Tensor, groups: Sequence[BlockGroup]) -> Tensor:
        """See ``Context``; in fp32 at least. Keys and values of step 0 are in the first chunk already."""
        if self._own is None:
            self._own = [], []
        else:
            for kept, new in zip(self._own, (k_BHAKD, v_BHAKD), strict=True):
                kept.append(_wide(new))
        with torch.autocast(q_BHGAKD.device.type, enabled=False):
            q_BHAGD = _wide(q_BHGAKD)[..., 0, :].transpose(2, 3) * q_BHGAKD.shape[-1] ** -0.5
            out_BHAGD = self._attend(q_BHAGD, *self._own)
        return out_BHAGD.transpose(2, 3).unsqueeze(4).to(q_BHGAKD.dtype)

    def _attend(self, q_BHAGD: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """``[B, H, A, G, D]``."""
        first_BHAGS = _each(q_BHAGD, self._rows.k.transpose(2, 3))
        first_BHAGS = first_BHAGS.masked_fill(self._unseen_BA1S[:, None], float("-inf"))
        if not keys:
            return _each(first_BHAGS.softmax(dim=-1), self._rows.v)
        own_BHAGi = q_BHAGD @ torch.cat(keys, dim=3).transpose(3, 4)
        shares = torch.cat((first_BHAGS, own_BHAGi), dim=-1).softmax(dim=-1)
        first_BHAGS, own_BHAGi = shares.split([self._rows.length, len(keys)], dim=-1)
        return _each(first_BHAGS, self._rows.v).add(own_BHAGi @ torch.cat(values, dim=3))


def _each(x_BHAGn: Tensor, with_BHnm: Tensor) -> Tensor:
    """The product of all positions with the same matrix ``[n, m]`` of their sequence and head."""
    products: Tensor = (x_BHAGn.flatten(2, 3) @ with_BHnm).unflatten(2, x_BHAGn.shape[2:4])
    return products


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
