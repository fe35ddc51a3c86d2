"""The block pool against a model that remembers every id of every request, over random histories."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspark.decoding.kvcache import BlockPool, OutOfBlocks
from dspark.nn.blocks import BlockTable

IDS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class Histories(RuleBasedStateMachine):
    """Requests begin (with whatever prefix is found), grow, roll back, are preempted and end.

    ``content`` is what a tensor would hold: written through tables, read back through tables.
    """

    @initialize(count=st.integers(1, 8), size=st.integers(1, 3))
    def begin(self, count: int, size: int) -> None:
        self.pool = BlockPool(count, size)
        self.content: list[list[int | None]] = [[None] * size for _ in range(count)]
        self.requests: dict[int, tuple[BlockTable, list[int], int]] = {}  # table, ids, prompt length
        self.born = 0

    @rule(ids=IDS)
    def admit(self, ids: list[int]) -> None:
        table = self.pool.find(ids[:-1])  # at least one token is always run
        assert self.read(table) == ids[: table.length], "a found prefix is the text that was asked for"
        known = table.length
        try:
            self.pool.reserve(table, len(ids) - known)
        except OutOfBlocks:
            self.pool.release(table)
            return
        self.write(table, ids)
        self.requests[self.born] = (table, list(ids), len(ids))
        self.born += 1
        self.pool.publish(table, ids)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), ids=IDS)
    def grow(self, data: st.DataObject, ids: list[int]) -> None:
        table, text, _ = self.requests[self.some(data)]
        before = (list(table.blocks), table.length, self.pool.available)
        try:
            self.pool.reserve(table, len(ids))
        except OutOfBlocks:
            assert before == (table.blocks, table.length, self.pool.available)
            return
        text += ids
        self.write(table, text)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        number = self.some(data)
        table, text, prompt = self.requests[number]
        length = data.draw(st.integers(prompt, len(text)))
        self.pool.truncate(table, length)
        del text[length:]

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), publish=st.booleans())
    def end(self, data: st.DataObject, publish: bool) -> None:
        table, text, _ = self.requests.pop(self.some(data))
        if publish:
            self.pool.publish(table, text)
        self.pool.release(table)
        assert (table.blocks, table.length) == ([], 0)

    @invariant()
    def everyone_reads_what_they_wrote(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity(table for table, _, _ in self.requests.values())
        for table, text, _ in self.requests.values():
            assert self.read(table) == text

    def some(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.requests)))

    def read(self, table: BlockTable) -> list[int | None]:
        rows = [row for block in table.blocks for row in self.content[block]]
        return rows[: table.length]

    def write(self, table: BlockTable, ids: list[int]) -> None:
        size = self.pool.size
        for id, row in zip(ids[table.length :], table.rows(len(ids) - table.length, size), strict=True):
            self.content[row // size][row % size] = id
        table.length = len(ids)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def filled(pool: BlockPool, ids: list[int]) -> BlockTable:
    table = pool.find(ids[:-1])
    pool.reserve(table, len(ids) - table.length)
    table.length = len(ids)
    pool.publish(table, ids)
    return table


def test_a_shared_beginning_is_held_once() -> None:
    pool = BlockPool(count=4, size=2)
    first, second = filled(pool, [1, 2, 3, 4, 5]), filled(pool, [1, 2, 3, 4, 6])
    assert first.blocks[:2] == second.blocks[:2] and first.blocks[2] != second.blocks[2]
    assert pool.available == 0
    pool.release(first)
    assert pool.available == 1, "what the second holds stays"


def test_what_is_let_go_is_found_again_until_the_room_is_needed() -> None:
    pool = BlockPool(count=3, size=2)
    table = filled(pool, [1, 2, 3, 4, 5])
    pool.release(table)
    assert pool.available == 3
    again = pool.find([1, 2, 3, 4])
    assert again.length == 4
    pool.release(again)
    filled(pool, [7, 7, 7, 7])  # takes the fresh block and the end of the chain, not its beginning
    assert pool.find([1, 2, 3, 4]).length == 2


def test_more_than_there_is_changes_nothing() -> None:
    pool = BlockPool(count=2, size=2)
    table = BlockTable()
    with pytest.raises(OutOfBlocks):
        pool.reserve(table, 5)
    assert table == BlockTable() and pool.available == 2


def test_control_a_forgotten_release_is_seen() -> None:
    pool = BlockPool(count=2, size=2)
    filled(pool, [1, 2, 3])
    with pytest.raises(AssertionError):
        pool.check_integrity([])


def test_a_request_alone_gets_neighbouring_blocks() -> None:
    pool = BlockPool(count=8, size=2)
    pool.release(filled(pool, [1, 1, 1]))  # leaves one block findable and one fresh at the end of the line
    table = BlockTable()
    for _ in range(6):
        pool.reserve(table, 2)
        table.length += 2
    assert table.blocks == list(range(table.blocks[0], table.blocks[0] + 6))
