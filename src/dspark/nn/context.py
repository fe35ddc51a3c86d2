"""Keys and values of the committed context in one draft layer, and how a block's own come behind them.

Legend: B batch, H key/value heads, S context rows, N rows of the block(s), D head size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]

_FIRST_CAPACITY = 256


class Context(Protocol):
    """What an attention layer needs of its context."""

    @property
    def length(self) -> int:
        """Number of rows S."""
        ...

    def join(self, k_BHND: Tensor, v_BHND: Tensor, rows: int | None = None) -> KeysValues:
        """``[B, H, S + N, D]``: the first ``rows`` rows (None: all) of the context, then the block's."""
        ...


class ContextRows(NamedTuple):
    """A context computed at once, differentiable: ``k`` (normed and rotated) and ``v``, ``[B, H, S, D]``."""

    k: Tensor
    v: Tensor

    @property
    def length(self) -> int:
        """Number of rows S."""
        return self.k.shape[2]

    def join(self, k_BHND: Tensor, v_BHND: Tensor, rows: int | None = None) -> KeysValues:
        """Copies; see ``Context``."""
        k, v = self.k[:, :, :rows], self.v[:, :, :rows]
        return torch.cat((k, k_BHND), dim=2), torch.cat((v, v_BHND), dim=2)


class ContextCache:
    """A context that grows with every round, for decoding (no gradients).

    The buffers double when they are full, so a row is copied O(1) times; a block's rows are written into the
    spare room behind the context and forgotten, which saves a copy of the whole context a round.
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffers: KeysValues | None = None

    def append(self, k_BHND: Tensor, v_BHND: Tensor) -> None:
        """Take over N further committed rows."""
        self._write(k_BHND, v_BHND)
        self.length += k_BHND.shape[2]

    def join(self, k_BHND: Tensor, v_BHND: Tensor, rows: int | None = None) -> KeysValues:
        """Views that the next ``append`` or ``join`` overwrites; only of the whole context."""
        assert rows is None, "a growing context is always seen whole"
        k, v = self._write(k_BHND, v_BHND)
        end = self.length + k_BHND.shape[2]
        return k[:, :, :end], v[:, :, :end]

    def _write(self, k_BHND: Tensor, v_BHND: Tensor) -> KeysValues:
        end = self.length + k_BHND.shape[2]
        k, v = self._room(end, k_BHND)
        k[:, :, self.length : end] = k_BHND
        v[:, :, self.length : end] = v_BHND
        return k, v

    def _room(self, rows: int, like_BHND: Tensor) -> KeysValues:
        if self._buffers is not None and self._buffers[0].shape[2] >= rows:
            return self._buffers
        old = self._buffers
        capacity = max(_FIRST_CAPACITY, 2 * rows)
        batch, heads, _, head_dim = like_BHND.shape
        k, v = (like_BHND.new_empty(batch, heads, capacity, head_dim) for _ in range(2))
        if old is not None:
            k[:, :, : self.length] = old[0][:, :, : self.length]
            v[:, :, : self.length] = old[1][:, :, : self.length]
        self._buffers = k, v
        return self._buffers
