"""What HTTP and streaming cost: the same load through a `dspark serve` process and through an engine here, in turn.

    python benchmarks/http_overhead.py [--users 16] [--requests 48] [--turns 5] [--mode off] [--json FILE]

Users ask again as soon as they are answered, and every answer is streamed, a chunk a round. The clients run on the same
machine and are as lean as can be (sockets, no JSON), but what they cost is in the figure. While one of the two works
the other waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dspark.cli.bench import adaptive_of
from dspark.cli.demo import demo_file
from dspark.cli.pair import Pair, load_pair
from dspark.data.prompts import read_in_turn
from dspark.decoding.engine import Engine, Limits
from dspark.decoding.named import Speculation
from dspark.decoding.request import Request
from dspark.foundation.artifacts import write_json
from dspark.speculation.sampling import Sampling


def through_engine(engine: Engine, prompts: list[list[int]], tokens: int, turn: int) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    for number, ids in enumerate(prompts):
        engine.submit(Request(f"{turn}/{number}", ids, Sampling(), number, tokens, ignore_stop=True))
    written = sum(len(each.output_ids) for each in engine.run())
    return written / (time.perf_counter() - started)


async def through_http(port: int, prompts: list[list[int]], tokens: int, users: int) -> float:
    """Tokens a second."""
    waiting, written = list(enumerate(prompts)), 0

    async def user() -> None:
        nonlocal written
        while waiting:
            number, ids = waiting.pop(0)
            body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "seed": number}
            came = await _streamed(port, body | {"stream": True, "stream_options": {"include_usage": True}})
            written += came  # behind the wait: others add meanwhile

    started = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(users)))
    return written / (time.perf_counter() - started)


async def _streamed(port: int, body: dict[str, object]) -> int:
    """Read a whole stream; tokens that it says it had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    last = b""
    while piece := await reader.read(65536):
        last = (last + piece)[-4096:]
    writer.close()
    found = re.findall(rb'"completion_tokens":(\d+)', last)
    assert found and b"[DONE]" in last, last[-300:]
    return int(found[-1])


def serving(options: list[str]) -> tuple[subprocess.Popen[str], int]:
    """A server of its own process, and its port."""
    command = [sys.executable, "-c", "from dspark.cli.main import run; run()", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"listening http://127.0.0.1:(\d+)", line):
            return server, int(found[1])
    raise SystemExit("the server did not start")


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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=16)
    arguments.add_argument("--requests", type=int, default=48)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--mode", default="off")
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    pair, positions = load_pair(), asked.users * 640
    ids = [pair.target.chat.prompt_ids(each.first_messages()) for each in read_in_turn([demo_file()])]
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        engine = engine_of(pair, asked.mode, asked.users, positions, costs)
        options = ["--mode", asked.mode, "--slots", str(asked.users), "--cache-tokens", str(positions)]
        server, port = serving([*options, *(["--costs", str(costs)] if costs.exists() else [])])
        try:
            rows = []
            for turn in range(-1, asked.turns):  # the first one warms up
                prompts = _prompts(ids, asked.requests, turn)
                plain = through_engine(engine, prompts, asked.tokens, turn)
                http = asyncio.run(through_http(port, prompts, asked.tokens, asked.users))
                if turn >= 0:
                    rows.append({"engine_tok_s": plain, "http_tok_s": http, "ratio": http / plain})
                    print(f"{plain:8.1f} tok/s engine {http:8.1f} tok/s http {http / plain:6.3f}", flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"median ratio {ratio:.3f}: HTTP and streaming cost {1 - ratio:.1%}")
    if asked.json is not None:
        write_json(asked.json, vars(asked) | {"json": str(asked.json), "rows": rows, "median_ratio": ratio})


if __name__ == "__main__":
    main()
