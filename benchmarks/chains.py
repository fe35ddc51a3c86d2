"""What autoregressive drafts cost: module by module and as one program, beside DSpark's, at 1 and 16 requests.

    python benchmarks/chains.py [--requests 1,16] [--context 256] [--repeats 40] [--json FILE]

Random weights of the recipes' sizes, rounded to bytes as a loaded drafter's are, beside the bundled target; greedy
drafts, all ways in turn, lower quartiles (neighbours only ever add). "in kernels": the share of the time that passes
inside compiled kernels; the rest is Python and PyTorch's small operations. With OMP_NUM_THREADS=1 it is the processor's
time, in which a neighbour's turns do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dspark.cli.pair import load_drafting
from dspark.decoding.proposer import propose
from dspark.decoding.request import Request, Running
from dspark.drafters import chain
from dspark.drafters.drafter import Drafter, Room
from dspark.foundation.settings import load_settings
from dspark.kernels.machine import Kernel
from dspark.nn.blocks import BlockTable
from dspark.speculation.draws import SeededDraws
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target
from dspark.training.recipe import Recipe
from dspark.training.start import new_drafter

BLOCK = 64  # positions of a block of the cache
ACCEPTED = 3  # context rows a request adds in a round
KINDS = {"eagle3": "smollm2-135m-eagle3.yaml", "mtp": "smollm2-135m-mtp.yaml"}
Work = Callable[[], Any]


def clock() -> float:
    """Seconds: of the processor where one thread does all, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def drafter_of(target: Target, recipe: str, compiled: bool) -> Drafter:
    """A packed drafter with random weights."""
    values = load_settings(Recipe, Path(str(files("dspark.recipes") / recipe)), ["drafter.initial=random"])
    drafter = new_drafter(values, target, []).eval()
    drafter.round_to_bytes()
    with mock.patch.object(chain, "compiles", lambda _: compiled):
        drafter.pack()
    return drafter


def filled(drafter: Drafter, requests: int, context: int) -> tuple[Room, list[Running]]:
    """Requests with so many random context rows."""
    each = -(-(context + 16) // BLOCK)
    room = drafter.new_room(requests * each, BLOCK)
    made = torch.Generator().manual_seed(1)
    rows = []
    for number in range(requests):
        ids = torch.randint(0, 12_000, (context + 1,), generator=made).tolist()
        row = Running(Request(f"{number}", ids, Sampling(), number, 64), SeededDraws(number), 64)
        row.table = BlockTable([number * each + i for i in range(each)])
        extend(room, row.table, ids[1:], made)
        row.table.length = context
        rows.append(row)
    return room, rows


def extend(room: Room, table: BlockTable, behind: Sequence[int], made: torch.Generator) -> None:
    """Random features for the positions behind the table's."""
    count = len(behind)
    features = torch.randn(count, room.drafter.config.taps_width, generator=made)
    positions = torch.arange(table.length, table.length + count)
    room.extend(features, positions, torch.tensor(table.rows(count, BLOCK)), torch.tensor(behind))


def draft(room: Room, rows: Sequence[Running], slots: int) -> Work:
    """A draft of so many tokens for each request."""
    return lambda: propose(rows, room, lambda _, source: source == "drafter", lambda _: None, lambda _: slots)


def context_rows(room: Room, rows: Sequence[Running]) -> Work:
    """A round's committed rows of all requests."""
    tables = [BlockTable(row.table.blocks, row.table.length - ACCEPTED) for row in rows]
    where = torch.tensor([at for table in tables for at in table.rows(ACCEPTED, BLOCK)])
    positions = torch.tensor([table.length + i for table in tables for i in range(ACCEPTED)])
    features = torch.randn(len(where), room.drafter.config.taps_width)
    return lambda: room.extend(features, positions, where, torch.zeros_like(where))


@contextmanager
def inside_kernels() -> Iterator[list[float]]:
    """Seconds inside compiled kernels, added up."""
    spent = [0.0]

    def timed(run: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: Any) -> None:
            started = clock()
            run(*arguments)
            spent[0] += clock() - started

        return watched

    with (
        mock.patch.object(Kernel, "__call__", timed(Kernel.__call__)),
        mock.patch.object(Kernel, "alone", timed(Kernel.alone)),
    ):
        yield spent


def in_turn(works: dict[str, Work], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each (lower quartile), and the share of its time inside kernels (measured by itself)."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 3):
        for name, work in works.items():
            started = clock()
            work()
            if turn >= 3:
                taken[name].append(clock() - started)
    found = {name: {"ms": 1e3 * statistics.quantiles(each, n=4)[0]} for name, each in taken.items()}
    for name, work in works.items():
        with inside_kernels() as spent:
            started = clock()
            for _ in range(repeats):
                work()
            found[name]["kernels"] = spent[0] / (clock() - started)
    return found


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", default="1,16")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--load", type=float, default=0.5, help="of the machine, above which nothing is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.getloadavg()[0] > options.load:
        sys.exit(f"the load of this machine is {os.getloadavg()[0]:.2f}; run when it is below {options.load}")
    target, dspark = load_drafting("smollm2-135m", "smollm2-135m", "float32")
    ways = {"dspark": dspark}
    for kind, recipe in KINDS.items():
        ways |= {f"{kind}, {'program' if each else 'modules'}": drafter_of(target, recipe, each) for each in (0, 1)}
    rows: list[dict[str, Any]] = []
    for requests in map(int, options.requests.split(",")):
        works: dict[str, Work] = {}
        for name, drafter in ways.items():
            room, running = filled(drafter, requests, options.context)
            works |= {f"{name}, draft of {slots}": draft(room, running, slots) for slots in (1, 5)}
            if name != "dspark":  # its rows wait for its next draft
                works[f"{name}, context rows"] = context_rows(room, running)
        del works["mtp, modules, draft of 5"], works["mtp, program, draft of 5"]
        for name, found in in_turn(works, options.repeats).items():
            rows.append({"requests": requests, "what": name, **found})
            print(f"{requests:3d}  {name:32s} {found['ms']:8.3f} ms  {found['kernels']:5.0%} in kernels", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
