"""Blocks of cached positions: who holds which, what is shared, what can be found again.

A block is a number; the tensors that it stands for live elsewhere (the target's keys and values and the drafter's
context rows are all indexed by it, so they live and die together). A request's cache is a table of blocks. A full
block can be shared: requests whose text begins with the same ids hold the same block, counted and never copied. A
block that nobody holds keeps its content until the room is needed, least recently used first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence

from dspark.foundation.errors import UserError
from dspark.nn.blocks import BlockTable

# The ids of a block and the block before it (None at the beginning): equal keys mean equal keys and values.
_Key = tuple[int | None, tuple[int, ...]]


class OutOfBlocks(Exception):
    """No block is free: somebody must be preempted, or must wait. Nothing was changed."""


class BlockPool:
    """``count`` blocks of ``size`` positions."""

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise UserError(f"{count} blocks of {size} positions were asked for; both must be at least 1")
        self.count, self.size = count, size
        self._holders = [0] * count
        # Held by nobody: blocks with nothing to find in them, in order, and findable ones, least recently used first.
        self._fresh = list(range(count))
        self._idle: dict[int, None] = {}
        self._key_of: dict[int, _Key] = {}
        self._block_of: dict[_Key, int] = {}
        self._children: dict[int, set[int]] = {}
        self.emptied: Callable[[int], None] | None = None
        """Who is told of a block in which there is nothing to find any more, and which nobody holds."""

    @property
    def available(self) -> int:
        """Blocks that can be had without preempting anybody."""
        return len(self._fresh) + len(self._idle)

    def reserve(self, table: BlockTable, positions: int) -> None:
        """Make room for further positions; OutOfBlocks, and nothing changed, where there is none."""
        needed = self.needed(table, positions)
        if needed > self.available:
            raise OutOfBlocks
        for _ in range(needed):
            table.blocks.append(self._take(table.blocks[-1] if table.blocks else None))

    def needed(self, table: BlockTable, positions: int) -> int:
        """Blocks that ``reserve`` of that many positions would take."""
        return max(0, -(-(table.length + positions) // self.size) - len(table.blocks))

    def truncate(self, table: BlockTable, length: int) -> None:
        """Forget positions from ``length`` on and let go of the blocks that only they were in.

        Written again, a block must not be anybody else's: what could be found stops at its beginning.
        """
        table.truncate(length)
        kept = -(-length // self.size)
        for block in reversed(table.blocks[kept:]):
            self._let_go(block)
        del table.blocks[kept:]
        if length % self.size and table.blocks[-1] in self._key_of:
            assert self._holders[table.blocks[-1]] == 1, "a shared block can't be rolled back into"
            self._forget(table.blocks[-1])

    def release(self, table: BlockTable) -> None:
        """Let go of everything; what was published can still be found."""
        for block in reversed(table.blocks):
            self._let_go(block)
        table.blocks, table.length = [], 0

    def withdraw(self, table: BlockTable) -> list[int]:
        """The blocks of ``table`` that nobody else holds; what was published in them is found no more."""
        own = [block for block in table.blocks if self._holders[block] == 1]
        for block in own:
            if block in self._key_of:
                self._forget(block)
        return own

    def publish(self, table: BlockTable, ids: Sequence[int]) -> None:
        """Make the full blocks of ``table`` findable: they hold ``ids`` and are complete in every tensor."""
        assert len(ids) <= table.length
        parent: int | None = None
        for index in range(len(ids) // self.size):
            key = (parent, tuple(ids[index * self.size : (index + 1) * self.size]))
            block = table.blocks[index]
            known = self._block_of.get(key)
            if known is None and block not in self._key_of:
                self._key_of[block], self._block_of[key] = key, block
                if parent is not None:
                    self._children.setdefault(parent, set()).add(block)
                known = block
            if known != block:
                return  # the same text lies in another block already; chains never mix
            parent = block

    def find(self, ids: Sequence[int]) -> BlockTable:
        """A table of the longest published beginning of ``ids``, in whole blocks, held for the caller."""
        table = BlockTable()
        parent: int | None = None
        for index in range(len(ids) // self.size):
            block = self._block_of.get((parent, tuple(ids[index * self.size : (index + 1) * self.size])))
            if block is None:
                break
            self._hold(block)
            table.blocks.append(block)
            parent = block
        table.length = len(table.blocks) * self.size
        return table

    def forget(self) -> None:
        """Find nothing any more of what nobody holds (so that a measurement reads its prompts)."""
        for block in list(self._idle):
            if block in self._idle:  # not forgotten with one before it
                self._forget(block)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise AssertionError unless these tables explain every holder, and every block is somewhere exactly once."""
        holders = [0] * self.count
        for table in tables:
            assert len(table.blocks) >= -(-table.length // self.size)
            assert len(set(table.blocks)) == len(table.blocks)
            for block in table.blocks:
                holders[block] += 1
        assert holders == self._holders
        assert sorted(set(self._fresh)) == self._fresh
        idle, fresh = self._idle.keys(), set(self._fresh)
        assert not idle & fresh
        assert idle | fresh == {block for block in range(self.count) if not holders[block]}
        assert {self._block_of[key]: key for key in self._block_of} == self._key_of
        assert idle <= self._key_of.keys() and not fresh & self._key_of.keys()
        for block, (parent, ids) in self._key_of.items():
            assert len(ids) == self.size
            assert parent is None or (parent in self._key_of and block in self._children[parent])

    def _take(self, before: int | None) -> int:
        """A block for a text whose last one is ``before``, so that few runs of blocks are read together.

        Its neighbour where that is free: a request alone is then one piece. Texts begin at the low end and grow at the
        high one: full blocks lie with full ones, and those being filled with each other.
        """
        if not self._fresh:
            self._forget(next(iter(self._idle)))
        place = 0 if before is None else len(self._fresh) - 1
        if before is not None:
            neighbour = bisect_left(self._fresh, before + 1)
            if self._fresh[neighbour : neighbour + 1] == [before + 1]:
                place = neighbour
        block = self._fresh.pop(place)
        self._holders[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._idle.pop(block, None)

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            self._empty(block)

    def _forget(self, block: int) -> None:
        """Make a block unfindable, and those behind it: a chain without its beginning means nothing."""
        for child in list(self._children.pop(block, ())):
            self._forget(child)
        key = self._key_of.pop(block)
        del self._block_of[key]
        if key[0] is not None and key[0] in self._children:
            self._children[key[0]].discard(block)
        if block in self._idle:
            del self._idle[block]
            self._empty(block)

    def _empty(self, block: int) -> None:
        insort(self._fresh, block)
        if self.emptied is not None:
            self.emptied(block)
