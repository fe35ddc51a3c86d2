"""What threads do together: every piece of work once, whoever is free; and teams that are dismissed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir
from torch import Tensor

from dspark.kernels.machine import I64, POINTER, Code, Kernel, can_compile
from dspark.kernels.program import Program

pytestmark = pytest.mark.skipif(not can_compile(), reason="nothing can be compiled here")


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """Adds one to each of ``total`` numbers, and writes beside them how many runs of them it was given; the table is
    (numbers, runs, total, rows)."""
    module = ir.Module()
    code = Code(module, "count", (POINTER,))
    numbers, runs, total, rows = (code.load(code.function.args[0], code.number(i), I64) for i in range(4))

    def add(place: object, index: object) -> None:
        one = code.build.add(code.load(code.pointer(place), index, I64), code.number(1))
        code.store(one, code.pointer(place), index, I64)

    def some(first: object, end: object) -> None:
        add(runs, code.team()[0])
        code.loop(first, end, 1, [], lambda i, _: add(numbers, i) or [])

    code.shared(total, rows, some)
    code.build.ret_void()
    return Kernel(module, "count")


@pytest.fixture
def threads() -> Iterator[None]:
    """As many as there were, again."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def counted(total: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(max(1, total), dtype=torch.int64), torch.zeros(8, dtype=torch.int64)


@pytest.mark.usefixtures("threads")
@given(total=st.integers(0, 3000), rows=st.sampled_from([1, 3, 4, 40]), team=st.integers(1, 7))
def test_every_piece_is_somebodys_once(kernel: Kernel, total: int, rows: int, team: int) -> None:
    torch.set_num_threads(team)
    numbers, runs = counted(total)
    kernel(numbers.data_ptr(), runs.data_ptr(), total, rows)
    assert (numbers[:total] == 1).all()
    assert int(runs.sum()) >= team


def test_few_rows_are_shared_once_and_for_all(kernel: Kernel) -> None:
    """Pieces cost more than they save there; with more rows some are left to whoever comes first."""
    given = []
    for rows in (3, 4):
        numbers, runs = counted(64)
        kernel.alone(numbers.data_ptr(), runs.data_ptr(), 64, rows)
        given.append(int(runs.sum()))
    assert given[0] == 1 < given[1]


@pytest.mark.usefixtures("threads")
def test_whoever_has_time_helps_a_thread_that_is_held_up() -> None:
    """The first thread, in its first run, waits until the second has done all that is not in that run (or for seconds).

    What is its own the second does first. The table is (things done by each thread, and where its runs begin, kept at
    the number of things that it had done before; total)."""
    module = ir.Module()
    code = Code(module, "wait", (POINTER,))
    build, number = code.build, code.team()[0]
    done, begun, total = (code.load(code.function.args[0], code.number(i), I64) for i in range(3))

    def some(first: object, end: object) -> None:
        before, own = build.block, build.sub(end, first)
        look, work = code.function.append_basic_block(), code.function.append_basic_block()
        waits = build.and_(build.icmp_signed("==", number, code.number(0)), build.icmp_signed("==", first, number))
        build.cbranch(waits, look, work)
        build.position_at_end(look)
        looks = build.phi(I64)
        again = build.add(looks, code.number(1))
        others = build.load_atomic(code.at(code.pointer(done), code.number(1), I64), "monotonic", 8, typ=I64)
        held_up = build.icmp_signed("<", build.add(others, own), total)
        build.cbranch(build.and_(held_up, build.icmp_signed("<", again, code.number(2**32))), look, work)
        looks.add_incoming(code.number(0), before)
        looks.add_incoming(again, look)
        build.position_at_end(work)
        before_this = build.atomic_rmw("add", code.at(code.pointer(done), number, I64), own, "monotonic")
        place = build.add(build.mul(number, total), before_this)
        code.store(first, code.pointer(begun), place, I64)

    code.shared(total, code.number(40), some)
    build.ret_void()
    torch.set_num_threads(2)
    done_by, begun_T = torch.zeros(2, dtype=torch.int64), torch.full((256,), -1)
    Kernel(module, "wait")(done_by.data_ptr(), begun_T.data_ptr(), 128)
    assert done_by.tolist() == [48, 80]
    assert [first for first in begun_T[128:].tolist() if first >= 0] == [64, *range(112, 128, 2), *range(48, 64, 2)]


def test_a_program_that_runs_again_shares_again(kernel: Kernel) -> None:
    """What was taken in one run is there again in the next."""
    numbers, runs = counted(64)
    program = Program([(kernel, (numbers.data_ptr(), runs.data_ptr(), 64, 8))] * 2)
    for _ in range(3):
        program.run()
    program.run(1)
    assert (numbers == 7).all()


COUNTING = """
import os, torch
from dspark.kernels.machine import dismiss_team
def threads():
    return len(os.listdir("/proc/self/task"))
def work():
    return torch.ones(2_000_000).sqrt()
torch.set_num_threads(3)
torch.ones(4) @ torch.ones(4)
before = threads(); work()
working = threads(); dismiss_team()
after = threads(); work()
print(working - before, after - before, threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_team_is_dismissed_and_comes_again() -> None:
    told = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.split() == ["2", "0", "2"]
