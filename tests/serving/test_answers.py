"""What a client is told of an answer that did not come to its end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dspark.decoding.request import Request
from dspark.serving.answers import pieces_of
from dspark.serving.errors import ApiError
from dspark.serving.mailbox import Mailbox
from dspark.serving.worker import Ended, Event, Progress, Ticket
from dspark.speculation.acceptance import Round
from dspark.speculation.sampling import Sampling
from tiny import tiny_target


def test_what_was_written_before_an_end_is_told_although_both_came_at_once() -> None:
    """The event loop may be late: nothing of the text may be lost by that."""
    target, cancelled = tiny_target(), list[Any]()

    async def heard() -> list[int]:
        box: Mailbox[tuple[Ticket, Event]] = Mailbox()
        ticket = Ticket(Request("r", [1, 2], Sampling(), 0, 8), 0, box)
        box.put((ticket, Progress(Round(0, (3, 4), 0, 0, 0, None))))
        box.put((ticket, Progress(Round(1, (5,), 0, 0, 0, None))))
        box.put((ticket, Ended("broken", "no numbers")))
        asked = SimpleNamespace(speculation=SimpleNamespace(summary=False))
        job = SimpleNamespace(asked=asked, tickets=[ticket], events=box, mode="off")
        service = SimpleNamespace(target=target, worker=SimpleNamespace(cancel=cancelled.append))
        ids: list[int] = []
        with pytest.raises(ApiError, match="no numbers"):
            async for piece in pieces_of(cast(Any, service), cast(Any, job)):
                ids += piece.ids
        return ids

    assert asyncio.run(heard()) == [3, 4, 5]
    assert len(cancelled) == 1, "and the rest is given up"
