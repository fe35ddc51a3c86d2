"""What a streamed chunk costs the server's event loop: the real server over an engine that makes up its steps.

    python benchmarks/stream_cost.py [--users 16] [--turns 7] [--before SRC] [--json FILE]

Processor microseconds of the loop's thread a chunk, so the machine may be busy and may have one core: nothing is timed.
``--before``: the ``src`` folder of another version of this package, whose server takes turns with this one's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from http_overhead import Server, lengths_of, port_of

from dspark.decoding.admission import Admission, Share
from dspark.decoding.engine import Engine
from dspark.decoding.kvcache import BlockPool
from dspark.decoding.laps import Laps
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Apart
from dspark.decoding.request import Completion, Running
from dspark.foundation.artifacts import write_json
from dspark.serving.listening import listen, run
from dspark.serving.metrics import Metrics
from dspark.serving.service import Bounds, Service
from dspark.serving.worker import Worker
from dspark.speculation.acceptance import Round
from dspark.speculation.draws import SeededDraws
from dspark.speculation.planner.single import WHOLE
from dspark.targets.card import load_card

_TEXT = (
    "The sea is blue because water takes more of the red light than of the blue, and so does the deeper of two seas. "
)
_PAUSE = 0.004  # seconds of a step: the loop has time to be through with the one before


class MadeUp(Engine):
    """Steps that write the next token of one text for everybody."""

    def __init__(self, target: Any, ids: Sequence[int], slots: int) -> None:
        self.target, self._ids = target, ids
        self.pool, self.laps, self._round_tokens, self.broken_drafts = BlockPool(slots * 8, 128), Laps(), 1, 0
        self.planner = Apart(WHOLE, WHOLE, drafter=False)
        self.lose = None
        self.admission = Admission(self.pool, (), self._begun, slots=slots, step_tokens=1024, round_tokens=1)

    def step(self, shares: Sequence[Share]) -> list[Completion]:
        time.sleep(_PAUSE)
        for row, count in ((share.row, share.count) for share in shares):
            row.table.length += count or 1
            if row.unread > 1 or (row.unread and row.rounds):
                continue
            token = self._ids[row.written % len(self._ids)]
            finish = "length" if row.room == 1 else None
            row.rounds.append(Round(len(row.rounds), (token,), 0, 0, 0, finish, "drafter"))
            row.ids.append(token)
        for row in [row for row in self.admission.running if row.rounds and row.rounds[-1].finish]:
            self.admission.finish(row)
        return []

    def _begun(self, request: Any) -> Running:
        return Running(request, SeededDraws(request.seed), self.limit(request))


def serve(slots: int) -> None:
    """Until it is told to end; everything but the engine is what `dspark serve` runs."""
    card = load_card("smollm2-135m")
    target: Any = SimpleNamespace(**vars(card), vocab_size=49152)
    engine = MadeUp(target, card.chat.encode(_TEXT), slots)
    metrics = Metrics("made-up", engine)
    worker = Worker(engine, 4 * slots, metrics)
    service = Service("made-up", target, Speculation("off"), 0, engine, worker, metrics, Bounds())
    with listen("127.0.0.1", 0) as listener:
        run(service, listener, 1.0)


def started(slots: int, source: Path | None) -> Server:
    """Such a server of this package, or of the one in ``source``."""
    path = os.pathsep.join(filter(None, (str(source or ""), os.environ.get("PYTHONPATH", ""))))
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(slots)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    return Server(process, port_of(process))


def compared(asked: argparse.Namespace) -> list[dict[str, float]]:
    """Microseconds a chunk, by version, one row a turn."""
    prompts, lengths = [[1, 2, 3, 4]] * asked.requests, lengths_of(asked.tokens, asked.requests)
    rows = []
    with ExitStack() as running:
        servers = {"now": started(asked.users, None)}
        if asked.before:
            servers["before"] = started(asked.users, asked.before)
        for server in servers.values():
            running.callback(server.stop)
        for turn in range(-1, asked.turns):  # the first one warms up
            row = {}
            for name in list(servers) if turn % 2 else reversed(servers):
                seen = servers[name].answer(prompts, lengths, asked.users)
                row[name] = 1e6 * seen["loop_seconds"] / seen["chunks"]
            if turn >= 0:
                rows.append(row)
                print("  ".join(f"{name} {cost:.1f} us a chunk" for name, cost in row.items()), flush=True)
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=16)
    arguments.add_argument("--requests", type=int, default=64)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--before", type=Path)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    rows = compared(asked)
    for name in rows[0]:
        print(f"{name}: median {statistics.median(row[name] for row in rows):.1f} us a chunk")
    if asked.before:
        print(f"now over before: median {statistics.median(row['now'] / row['before'] for row in rows):.3f}")
    if asked.json is not None:
        write_json(asked.json, {"rows": rows})


if __name__ == "__main__":
    main()
