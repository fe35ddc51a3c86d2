"""Requests that come and go: cancellation at any moment, deadlines, priorities, and a wait that ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from dspark.decoding.engine import Engine, Limits
from dspark.decoding.planners import Adaptive, Together
from dspark.decoding.queue import PATIENCE, Queue
from dspark.decoding.request import Request, Running
from dspark.decoding.single import Decoder
from dspark.foundation.errors import UserError
from dspark.speculation.cost import CostModel
from dspark.speculation.draws import SeededDraws
from dspark.speculation.sampling import Sampling
from tiny import tiny_drafter, tiny_target

TOKENS = 24
COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.2, 2.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.0, 0.0))


def prompt(number: int) -> list[int]:
    """Of any length; every third begins like its neighbours."""
    numbers = random.Random(number // 3)
    return [1, *numbers.choices(range(3, 60), k=numbers.randint(1, 30)), *([number % 60] * (number % 3))]


def request(number: int, **more: object) -> Request:
    return replace(Request(f"{number}", prompt(number), Sampling(), number, TOKENS), **more)  # type: ignore[arg-type]


def engines() -> list[Callable[[], Engine]]:
    target = tiny_target(sharpness=2.0)
    drafter = tiny_drafter(target)
    limits = Limits(4, 112, step_tokens=24, block=8)
    return [
        lambda: Engine(target, (), limits),
        lambda: Engine(target, (), limits, "dspark", drafter, planner=Together(Adaptive(COSTS), 4, 4)),
    ]


@pytest.mark.parametrize("which", [0, 1], ids=["plain", "adaptive"])
def test_whatever_comes_and_goes_the_others_are_answered_as_if_alone(which: int) -> None:
    engine = engines()[which]()
    decoder, numbers = Decoder(engine.target), random.Random(which)
    waiting, given_up, answered, now = list(range(60)), set[str](), dict[str, list[int]](), 0
    while waiting or engine.admission.running or len(engine.admission.queue):
        now += 1
        for _ in range(numbers.choice((0, 0, 1, 3)) if waiting else 0):
            number = waiting.pop() if waiting else None
            if number is not None:
                deadline = now + numbers.randint(1, 25) if number % 5 == 0 else None
                engine.submit(request(number, priority=number % 3, deadline=deadline))
        if numbers.random() < 0.15:
            gone = engine.cancel(f"{numbers.randrange(60)}")
            given_up |= {gone.request.id} if gone else set()
        given_up |= {gone.request.id for gone in engine.expire(now)}
        for answer in engine.step(engine.admission.shares()):
            answered[answer.request.id] = answer.output_ids
        engine.check_integrity()
    assert engine.pool.available == engine.pool.count, "every block is free again"
    assert not given_up & answered.keys() and len(given_up) + len(answered) == 60
    assert len(given_up) > 5 and len(answered) > 30 and engine.admission.preemptions > 0
    for id_, ids in answered.items():
        assert ids == decoder.answer(request(int(id_)), "plain").output_ids


def test_what_was_given_up_says_why_and_what_it_had() -> None:
    engine = engines()[0]()
    for number in range(6):
        engine.submit(request(number, deadline=10.0 if number == 1 else None))
    engine.step(engine.admission.shares())
    engine.step(engine.admission.shares())
    assert engine.expire(9.9) == []
    (late,) = engine.expire(10.0)
    assert late.request.id == "1" and late.reason == "deadline" and late.output_ids
    waiting = engine.cancel("5")
    assert waiting is not None and waiting.reason == "cancelled" and waiting.output_ids == []
    assert engine.cancel("5") is None and engine.cancel("nobody") is None
    with pytest.raises(UserError, match="'2' is under way already"):
        engine.submit(request(2))
    assert {answer.request.id for answer in engine.run()} == {"0", "2", "3", "4"}


def test_a_request_that_can_not_be_answered_is_refused_at_once_and_harms_nobody() -> None:
    engine = engines()[0]()
    engine.submit(request(0))
    with pytest.raises(UserError, match="needs 209 positions"):
        engine.submit(request(1, prompt_ids=[1] * 9, max_tokens=200))
    assert [answer.request.id for answer in engine.run()] == ["0"]


def test_urgent_requests_go_first_and_give_way_last() -> None:
    engine = engines()[0]()
    for number in range(12):
        engine.submit(request(number, priority=0 if number >= 8 else 1))
    order = [answer.request.id for answer in engine.run()]
    assert set(order[:4]) == {"8", "9", "10", "11"}


def test_urgent_requests_keep_their_blocks_where_they_run_out() -> None:
    """Two of three requests fit; the one that came first is the least urgent, and it alone has to wait."""
    engine = Engine(tiny_target(sharpness=2.0), (), Limits(3, 72, block=8))
    for number in range(3):
        engine.submit(request(number, prompt_ids=[1, 5 + number, 9], max_tokens=28, ignore_stop=True, priority=-number))
    order = [answer.request.id for answer in engine.run()]
    assert engine.admission.preemptions > 0 and order == ["2", "1", "0"]


def row_of(each: Request) -> Running:
    return Running(each, SeededDraws(0), 1)


def test_nobody_waits_for_ever() -> None:
    """However many urgent ones come, the oldest request is passed a bounded number of times."""
    queue = Queue((), row_of)
    queue.submit(request(0, priority=5))
    taken = []
    for number in range(1, 3 * PATIENCE):
        queue.submit(request(number, priority=0))
        row = queue.next()
        assert row is not None and row is queue.next(), "asked again, the same one"
        queue.taken()
        taken.append(row.request.id)
    assert taken.index("0") == PATIENCE
    assert [int(each) for each in taken if each != "0"] == sorted(int(each) for each in taken if each != "0")


def test_a_queue_takes_from_its_source_last_and_lets_go() -> None:
    queue = Queue(iter([request(7), request(8)]), row_of)
    queue.submit(request(1))
    first = queue.next()
    assert first is not None and first.request.id == "1"
    queue.taken()
    queue.put_back(first)
    assert "1" in queue and queue.withdraw("1") is first and "1" not in queue and len(queue) == 0
    queue.submit(request(2))
    with pytest.raises(UserError, match="waits already"):
        queue.submit(request(2))
    gone = queue.withdraw("2")
    assert isinstance(gone, Request) and gone.id == "2"
    queue.submit(request(2))  # the same id again, behind a trace of the first in the order
    assert [row.request.id for _ in range(3) if (row := queue.next()) and queue.taken() is None] == ["2", "7", "8"]
    assert queue.next() is None
