"""Whoever reads takes all that came, in order, and is woken when something does."""

from __future__ import annotations

import asyncio

import pytest

from dspark.serving.mailbox import Mailbox


def test_all_that_came_is_taken_at_once_and_in_order() -> None:
    async def run() -> None:
        box = Mailbox[int]()
        box.put(1)
        box.put(2)
        assert await box.take() == [1, 2]
        reading = asyncio.ensure_future(box.take())
        await asyncio.sleep(0)
        assert not reading.done()
        box.put(3)
        box.put(4)
        assert await asyncio.wait_for(reading, 5) == [3, 4]

    asyncio.run(run())


def test_a_reader_who_left_takes_nothing_along() -> None:
    async def run() -> None:
        box = Mailbox[int]()
        reading = asyncio.ensure_future(box.take())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        box.put(1)
        assert await asyncio.wait_for(box.take(), 5) == [1]

    asyncio.run(run())
