"""Cached positions in blocks, and which rows of which blocks the queries of a step look at.

A block is ``size`` rows of every tensor of a cache; a request's positions lie in the blocks of its table, in order. The
tensors are ``[H, N*size, D]``: rows of one head lie together inside a block and across neighbouring blocks. So the
blocks of many requests of unequal lengths are one batch for an attention kernel, a request alone whose blocks are
neighbours is one piece, and keys and values are never copied.

Legend: N blocks, R requests of a group, n tokens of one request (padded), A = R * n or R * M, G query heads per
key/value head, P items, M items of one request (padded) or blocks of a token, S rows of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from dspark.kernels.seen import Seen

# Requests that bring at most this many tokens are padded to one length and share calls; longer ones go alone.
SHORT = 16
# Rows of all heads that are read in the time that a further call of the kernel costs.
_ROWS_A_CALL = 256
# The owner of an item that nobody looks at: a block between two others, read because that is cheaper than a call.
_NOBODY = -1

_Item = tuple[int, int, int]  # a block, the request it belongs to, and which of that request's blocks it is


@dataclass
class BlockTable:
    """One request's blocks in the order of its positions, of which the first ``length`` are filled."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on (rejected drafts); the next tokens overwrite them."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length

    def rows(self, count: int, size: int) -> list[int]:
        """Rows of the next ``count`` positions."""
        return [self.blocks[p // size] * size + p % size for p in range(self.length, self.length + count)]


@dataclass(frozen=True)
class Piece:
    """One call of the kernel: item i is ``rows`` rows from ``first + i * stride`` on, looked at by ``owners[i]`` (or by
    nobody).

    ``offsets[i]`` is the position of its first row. The items lie one behind the other, so they are a view.
    """

    first: int
    stride: int
    rows: int
    owners: tuple[int, ...]
    offsets: tuple[int, ...]

    def view(self, cached_HSD: Tensor) -> Tensor:
        """``[P, H, S, D]`` of this piece."""
        heads, _, width = cached_HSD.shape
        by_head, by_row, by_number = cached_HSD.stride()
        return cached_HSD.as_strided(
            (len(self.owners), heads, self.rows, width),
            (self.stride * by_row, by_head, by_row, by_number),
            cached_HSD.storage_offset() + self.first * by_row,
        )


class Group:
    """Requests of one step that share calls: their queries padded to one length, and the pieces they look at.

    ``tokens_A``: which of the step's tokens each of the R*n queries is (padding repeats a request's last).
    ``items_A``: the R*M items of the requests, numbered over all pieces (padding is ``absent_RM``).
    """

    def __init__(
        self,
        tables: Sequence[BlockTable],
        counts: Sequence[int],
        firsts: Sequence[int],
        size: int,
        device: torch.device,
    ) -> None:
        self.longest = max(counts)
        self.ends = [table.length + count for table, count in zip(tables, counts, strict=True)]
        self.pieces = _pieces(tables, self.ends, size)
        self.owners = [torch.tensor(piece.owners, device=device).clamp(min=0) for piece in self.pieces]
        self._slot_Rn = torch.arange(self.longest, device=device).minimum(
            torch.tensor(counts, device=device)[:, None] - 1
        )
        self.tokens_A = (torch.tensor(firsts, device=device)[:, None] + self._slot_Rn).flatten()
        self._starts_R = torch.tensor([table.length for table in tables], device=device)
        items_RM, self.absent_RM = _items(self.pieces, len(tables), device)
        self.items_A, self.ragged = items_RM.flatten(), bool(self.absent_RM.any())

    @property
    def whole(self) -> bool:
        """Whether item i is all that request i looks at, so that there is nothing to put together."""
        return len(self.pieces) == 1 and self.pieces[0].owners == tuple(range(len(self.ends)))

    def visible(self, index: int, window: int | None, causal: bool) -> Tensor:
        """``[P, n, S]``: whether a query of that piece's owner may look at a row.

        The query at position i sees position j iff ``i - window < j``, and ``j <= i`` where ``causal``, else all of the
        request's positions, its new ones included.
        """
        piece, owners_P = self.pieces[index], self.owners[index]
        device = owners_P.device
        row_PS = torch.tensor(piece.offsets, device=device)[:, None] + torch.arange(piece.rows, device=device)
        query_Pn = (self._starts_R[:, None] + self._slot_Rn)[owners_P]
        last_Pn = query_Pn if causal else torch.tensor(self.ends, device=device)[owners_P][:, None] - 1
        seen = row_PS[:, None] <= last_Pn[..., None]
        if window is not None:
            seen = seen & (row_PS[:, None] > query_Pn[..., None] - window)
        holes = [i for i, owner in enumerate(piece.owners) if owner == _NOBODY]
        if holes:  # whatever comes out of them is not used, so they need no mask
            seen[holes] = True
        return seen.expand(-1, query_Pn.shape[1], -1)


class Plan:
    """Who looks where in one step: ``counts[i]`` new tokens of ``tables[i]``, laid end to end.

    ``causal`` False lets all new tokens of a request see each other (the block of a drafter). ``exact`` False: a
    token's result need not be the same to the bit in any company.
    """

    def __init__(
        self,
        tables: Sequence[BlockTable],
        counts: Sequence[int],
        size: int,
        device: torch.device,
        causal: bool = True,
        exact: bool = True,
    ) -> None:
        self.size = size
        self.hurried = not exact and min(counts, default=0) > SHORT
        """Whether whole texts are read and may be in the way of PyTorch's kernels, which have several tokens share a
        reading of their keys.
        """
        self._tables, self._counts, self._device, self._causal = tables, counts, device, causal
        self._starts = [table.length for table in tables]  # before the step is counted as cached
        self._masks: dict[tuple[int, int, int, int | None, torch.dtype], Tensor | None] = {}

    @cached_property
    def seen(self) -> Seen:
        """What the compiled kernel reads."""
        return Seen([table.blocks for table in self._tables], self._starts, self._counts, self._causal)

    @cached_property
    def groups(self) -> list[Group]:
        """What PyTorch's kernels read."""
        counts = self._counts
        tables = [BlockTable(each.blocks, start) for each, start in zip(self._tables, self._starts, strict=True)]
        firsts = list(accumulate(counts, initial=0))
        short = [i for i, count in enumerate(counts) if count <= SHORT]
        groups = [[i] for i, count in enumerate(counts) if count > SHORT] + ([short] if short else [])
        return [
            Group(
                [tables[i] for i in some], [counts[i] for i in some], [firsts[i] for i in some], self.size, self._device
            )
            for some in groups
        ]

    @cached_property
    def in_order(self) -> bool:
        """Whether the queries of the only group are the step's tokens as they lie."""
        return len(self.groups) == 1 and len(self.groups[0].tokens_A) == sum(self._counts)

    @cached_property
    def places_T(self) -> Tensor:
        """Where each of the step's tokens is found among the queries of all groups, padding included."""
        queries_A = torch.cat([group.tokens_A for group in self.groups])
        places_T = queries_A.new_empty(sum(self._counts))
        places_T[queries_A] = torch.arange(
            len(queries_A), device=queries_A.device
        )  # padding is as good as its original
        return places_T

    def mask(self, group: int, piece: int, groups: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[P, 1, G*n, S]`` of a piece; None where everything is visible.

        Made once a step for all layers. What can't be seen gets a huge negative number and not minus infinity: a query
        that sees nothing of one item must come out as a number, whose weight beside the others is then exactly 0.
        """
        key = (group, piece, groups, window, dtype)
        if key not in self._masks:
            seen = self.groups[group].visible(piece, window, self._causal)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask.masked_fill_(~seen, torch.finfo(dtype).min / 4)
            self._masks[key] = None if bool(seen.all()) else mask.repeat(1, groups, 1)[:, None]
        return self._masks[key]


class FixedPlan:
    """The same for a step whose tokens all have as many blocks, of which each sees what is its own and not behind it:
    ``blocks_TM`` of positions ``0 ... M*size-1`` (any where a token has no more) and ``positions_T`` may be written
    anew, and no shape depends on them.
    """

    def __init__(self, blocks_TM: Tensor, positions_T: Tensor, size: int) -> None:
        self.blocks_TM, self.size = blocks_TM, size
        self._positions_T = positions_T
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def view(self, cached_HSD: Tensor) -> Tensor:
        """``[T, H, M*size, D]``, a copy."""
        heads, _, width = cached_HSD.shape
        blocks = cached_HSD.unflatten(1, (-1, self.size)).transpose(0, 1)
        gathered_TMHSD: Tensor = blocks[self.blocks_TM]
        return gathered_TMHSD.transpose(1, 2).reshape(len(self.blocks_TM), heads, -1, width)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask ``[T, 1, 1, M*size]``, as a ``Plan``'s."""
        if (window, dtype) not in self._masks:
            row_S = torch.arange(self.blocks_TM.shape[1] * self.size, device=self.blocks_TM.device)
            seen_TS = row_S <= self._positions_T[:, None]
            if window is not None:
                seen_TS &= row_S > self._positions_T[:, None] - window
            mask_TS = torch.zeros(seen_TS.shape, dtype=dtype, device=seen_TS.device)
            self._masks[window, dtype] = mask_TS.masked_fill_(~seen_TS, torch.finfo(dtype).min / 4)[:, None, None]
        return self._masks[window, dtype]


def _pieces(tables: Sequence[BlockTable], ends: Sequence[int], size: int) -> list[Piece]:
    """Few calls: a lone request in neighbouring blocks is one item, else runs of blocks with an item each.

    A block that several requests share is in as many runs.
    """
    used = [table.blocks[: -(-end // size)] for table, end in zip(tables, ends, strict=True)]
    if len(used) == 1 and used[0] == list(range(used[0][0], used[0][-1] + 1)):
        return [Piece(used[0][0] * size, ends[0], ends[0], (0,), (0,))]
    runs: list[list[_Item]] = []
    behind: dict[int, list[list[_Item]]] = {}  # by the block that would continue them
    for item in sorted((block, owner, i) for owner, blocks in enumerate(used) for i, block in enumerate(blocks)):
        waiting = behind.get(item[0])
        if waiting:
            run = waiting.pop()
        else:
            run = []
            runs.append(run)
        run.append(item)
        behind.setdefault(item[0] + 1, []).append(run)
    parts = [part for run in runs for part in _by_fill(run, ends, size)]
    return [
        Piece(
            first=part[0][0] * size,
            stride=size,
            rows=_rows(part, ends, size),
            owners=tuple(owner for _, owner, _ in part),
            offsets=tuple(i * size for _, _, i in part),
        )
        for part in _joined(parts, ends, size)
    ]


def _rows(part: Sequence[_Item], ends: Sequence[int], size: int) -> int:
    """Rows to be read of each block, those of the fullest."""
    return max(min(size, ends[owner] - i * size) for _, owner, i in part if owner != _NOBODY)


def _by_fill(run: Sequence[_Item], ends: Sequence[int], size: int) -> list[list[_Item]]:
    """A run cut where full blocks meet unfilled ones."""
    return [list(part) for _, part in groupby(run, key=lambda item: ends[item[1]] >= (item[2] + 1) * size)]


def _joined(parts: list[list[_Item]], ends: Sequence[int], size: int) -> list[list[_Item]]:
    """Parts put together, with what lies between them, where the rows read for nothing cost less than a call."""
    joined: list[list[_Item]] = []
    for part in sorted(parts):
        last = joined[-1] if joined else []
        gap = part[0][0] - last[-1][0] - 1 if last else -1
        if gap >= 0:
            before, behind = _rows(last, ends, size), _rows(part, ends, size)
            each = max(before, behind)
            if gap * each + len(last) * (each - before) + len(part) * (each - behind) <= _ROWS_A_CALL:
                last += [(last[-1][0] + 1 + i, _NOBODY, 0) for i in range(gap)] + part
                continue
        joined.append(part)
    return joined


def _items(pieces: Sequence[Piece], requests: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Item numbers of each request over all pieces ``[R, M]``, and where there are none."""
    numbers: list[list[int]] = [[] for _ in range(requests)]
    for number, owner in enumerate(owner for piece in pieces for owner in piece.owners):
        if owner != _NOBODY:
            numbers[owner].append(number)
    most = max(map(len, numbers))
    items = torch.tensor([each + [0] * (most - len(each)) for each in numbers], device=device)
    present = torch.tensor([[i < len(each) for i in range(most)] for each in numbers], device=device)
    return items, ~present
