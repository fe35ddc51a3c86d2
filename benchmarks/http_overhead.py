"""What HTTP and streaming cost: the same load through a `dspark serve` process and through an engine here, in turn.

    python benchmarks/http_overhead.py [--users 16] [--turns 5] [--mode off] [--before SRC] [--switch S ...]

Users ask again as soon as they are answered, and every answer is streamed, a chunk a round. The users are one process
of their own (http_clients.py) on the same machine: what they cost is in the ratio, and told, as is what the server's
event loop takes. While one side works the others wait. ``--before``: the ``src`` folder of another version of this
package, whose server takes part in each turn. ``--switch``: further servers whose threads hand each other the
interpreter after so many seconds (Python's own: 0.005).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark.cli.bench import adaptive_of
from dspark.cli.demo import demo_file
from dspark.cli.pair import Pair, load_pair
from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.request import Request
from dspark.foundation.artifacts import write_json
from dspark.speculation.sampling import Sampling

_CLIENTS = Path(__file__).with_name("http_clients.py")
_SWITCH = 0.005


def lengths_of(tokens: int, count: int) -> list[int]:
    """Tokens of each answer, half as many up to half as many again: answers of one length would all end together, and
    all users ask at once, ever after (``load.closed`` staggers them for the same reason).
    """
    return [tokens // 2 + number * 37 % (tokens + 1) for number in range(count)]


def through_engine(engine: Engine, prompts: list[list[int]], lengths: list[int], turn: int) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    for number, (ids, tokens) in enumerate(zip(prompts, lengths, strict=True)):
        engine.submit(Request(f"{turn}/{number}", ids, Sampling(), number, tokens, ignore_stop=True))
    written = sum(len(each.output_ids) for each in engine.run())
    return written / (time.perf_counter() - started)


def port_of(process: subprocess.Popen[str]) -> int:
    """Where a server says that it listens, once it does."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"listening http://127.0.0.1:(\d+)", line):
            return int(found[1])
    raise SystemExit("the server did not start")


@dataclass(frozen=True)
class Server:
    """A `dspark serve` process."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def started(cls, options: list[str], source: Path | None = None, switch: float = _SWITCH) -> Server:
        """Of this package, or of the one in ``source``."""
        program = f"import sys; sys.setswitchinterval({switch}); from dspark.cli.main import run; run()"
        command = [sys.executable, "-c", program, "serve", "--port", "0", *options]
        path = os.pathsep.join(filter(None, (str(source or ""), os.environ.get("PYTHONPATH", ""))))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
        return cls(process, port_of(process))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)

    def answer(self, prompts: list[list[int]], lengths: list[int], users: int) -> dict[str, float]:
        """What its users saw, and the seconds that its event loop worked meanwhile."""
        usual = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        bodies = [
            json.dumps({"prompt": ids, "seed": number, "max_tokens": tokens, **usual})
            for number, (ids, tokens) in enumerate(zip(prompts, lengths, strict=True))
        ]
        asked = json.dumps({"port": self.port, "bodies": bodies, "users": users})
        before = self._loop_seconds()
        clients = subprocess.run([sys.executable, _CLIENTS], input=asked, stdout=subprocess.PIPE, check=True, text=True)
        seen = json.loads(clients.stdout)
        assert seen["tokens"] == sum(lengths), f"{seen['tokens']} tokens of {sum(lengths)} came"
        return seen | {"loop_seconds": self._loop_seconds() - before, "tok_s": seen["tokens"] / seen["seconds"]}

    def _loop_seconds(self) -> float:
        """CPU seconds of the main thread, where the event loop runs; NaN where the system does not tell."""
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/schedstat")
        return int(told.read_text().split()[0]) / 1e9 if told.exists() else float("nan")


def engine_of(pair: Pair, mode: str, users: int, positions: int, costs: Path) -> Engine:
    """The same engine as the server's; what steps cost is written for the server to read."""
    speculation = Speculation.named(mode, 7)
    adaptive = adaptive_of(pair, users) if mode == "adaptive" else None
    if adaptive is not None:
        adaptive.costs.save(costs)
    planner = speculation.choosing(adaptive, users, 7)
    return speculation.engine(pair.target, pair.decoder.drafter, (), Limits(users, positions), planner)


def _prompts(ids: list[list[int]], count: int, turn: int) -> list[list[int]]:
    """Other ones each turn, so that no cache has them: each ends with a token of its own."""
    return [[*ids[n % len(ids)], 1000 + (turn + 1) * count + n] for n in range(count)]


def compared(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a turn."""
    pair, positions = load_pair(), asked.users * 640
    ids = [pair.target.chat.prompt_ids(each.first_messages()) for each in read_in_turn([demo_file()])]
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        costs = Path(folder) / "costs.json"
        engine = engine_of(pair, asked.mode, asked.users, positions, costs)
        options = ["--mode", asked.mode, "--slots", str(asked.users), "--cache-tokens", str(positions)]
        options += ["--costs", str(costs)] if costs.exists() else []
        kinds: dict[str, dict[str, Any]] = {"http": {}} | ({"before": {"source": asked.before}} if asked.before else {})
        kinds |= {f"switch {seconds:g}": {"switch": seconds} for seconds in asked.switch}
        servers = {}
        for name, kind in kinds.items():
            servers[name] = Server.started(options, **kind)
            running.callback(servers[name].stop)
        for turn in range(-1, asked.turns):  # the first one warms up
            prompts = _prompts(ids, asked.requests, turn)
            lengths = lengths_of(asked.tokens, asked.requests)
            row: dict[str, Any] = {"engine_tok_s": through_engine(engine, prompts, lengths, turn)}
            for name in list(servers) if turn % 2 else reversed(servers):
                row[name] = servers[name].answer(prompts, lengths, asked.users)
                row[name]["ratio"] = row[name]["tok_s"] / row["engine_tok_s"]
            if turn >= 0:
                rows.append(row)
                _say(row)
    return rows


def _say(row: dict[str, Any]) -> None:
    print(f"{row['engine_tok_s']:8.1f} tok/s engine", end="")
    for name in row.keys() - {"engine_tok_s"}:
        told = row[name]
        loop, clients = (1e6 * told[key] / told["chunks"] for key in ("loop_seconds", "cpu_seconds"))
        print(f"  {name} {told['ratio']:.3f} ({loop:.0f} us a chunk, users {clients:.0f})", end="")
    print(flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=16)
    arguments.add_argument("--requests", type=int, default=48)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--mode", default="off")
    arguments.add_argument("--before", type=Path)
    arguments.add_argument("--switch", type=float, nargs="*", default=[])
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    rows = compared(asked)
    for name in rows[0].keys() - {"engine_tok_s"}:
        ratio = statistics.median(row[name]["ratio"] for row in rows)
        print(f"{name}: median ratio {ratio:.3f}, HTTP and streaming cost {1 - ratio:.1%}")
    if asked.json is not None:
        said = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
        write_json(asked.json, said | {"rows": rows})


if __name__ == "__main__":
    main()
