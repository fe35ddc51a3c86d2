"""Hundreds of clients, most of them rude, against a real `dspark serve`: no crash, no hang, no leak, no text harmed.

    python benchmarks/abuse.py [--clients 200] [--minutes 3] [--mode adaptive] [--json FILE]

Clients ask greedily (streamed and whole, in every mode), sample, leave in the middle or at once, send prompts that are
too long, bodies that are no JSON, fields that are hostile, bodies that are huge or never end, paths that there are not.
At the end the server must be idle with every block free, its memory flat, and each greedy answer that was read to its
end must be what the target says alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspark.cli.pair import load_quietly
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.foundation.artifacts import write_json
from dspark.speculation.sampling import Sampling

PROMPTS = [f"{what} {n}:" for n in range(6) for what in ("Count from one to", "A story about the number", "Add ten to")]
TOKENS = 32
HOSTILE: list[dict[str, Any]] = [
    {"temperature": -1},
    {"temperature": "hot"},
    {"max_tokens": 10**12},
    {"max_tokens": -1},
    {"n": 10**6},
    {"stop": ["x"] * 50},
    {"logit_bias": {"9" * 9: 1}},
    {"tools": [{}]},
    {"speculative": {"mode": "\u0000"}},
    {"seed": 2**80},
    {"prompt": [-1]},
    {"prompt": [[]]},
    {"unheard": {"of": []}},
]
_LIMIT = 120.0  # seconds that any answer may take


@dataclass
class Seen:
    """What clients saw: (what they did, what came of it) counted; what went wrong in words."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    compared: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


class Clients:
    """Acts for so long, each client after another of its own."""

    def __init__(self, port: int, expected: dict[str, str], end: float, modes: list[str]) -> None:
        self.seen, self._port, self._expected, self._end, self._modes = Seen(), port, expected, end, modes
        self._acts = [
            *[self.greedy, self.streamed, self.leaves, self.leaves_at_once, self.samples] * 2,
            *(self.too_long, self.malformed, self.hostile, self.huge, self.never_ends, self.nowhere),
        ]

    async def client(self, number: int) -> None:
        """Until the end."""
        numbers = random.Random(number)
        await asyncio.sleep(numbers.random() * 2)
        while time.monotonic() < self._end:
            act = numbers.choice(self._acts)
            try:
                came = await asyncio.wait_for(act(numbers), _LIMIT)
            except TimeoutError:
                came = "HANGS"
                self.seen.wrong.append(f"{act.__name__} had no end")
            except OSError as error:
                came = type(error).__name__
            self.seen.counts[act.__name__, came] += 1
            if came in ("429", "503"):
                await asyncio.sleep(numbers.random() * 2)

    async def greedy(self, numbers: random.Random) -> str:
        body, prompt = self._asked(numbers)
        status, answer = await self._ask(body)
        if status == "200":
            self._judge(prompt, json.loads(answer)["choices"][0]["text"])
        return status

    async def streamed(self, numbers: random.Random) -> str:
        body, prompt = self._asked(numbers)
        status, answer = await self._ask(body | {"stream": True})
        if status == "200":
            events = re.findall(rb"data: (\{.*\})", answer)
            if any(b'"error"' in each for each in events) or not answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
                return "200, no end"
            self._judge(prompt, "".join(json.loads(each)["choices"][0]["text"] for each in events))
        return status

    async def samples(self, numbers: random.Random) -> str:
        body, _ = self._asked(numbers)
        more = {"temperature": 1.0, "presence_penalty": 0.5, "logprobs": 2, "stop": ["\n\n"], "n": 2}
        return (await self._ask(body | more))[0]

    async def leaves(self, numbers: random.Random) -> str:
        body, _ = self._asked(numbers)
        _, writer = reader_writer = await self._open(json.dumps(body | {"stream": True, "max_tokens": 200}).encode())
        with suppress(TimeoutError):
            await asyncio.wait_for(reader_writer[0].read(600), numbers.random() * 3)
        writer.transport.abort() if numbers.random() < 0.5 else writer.close()
        return "left"

    async def leaves_at_once(self, numbers: random.Random) -> str:
        body, _ = self._asked(numbers)
        _, writer = await self._open(json.dumps(body | {"max_tokens": 200}).encode())
        writer.transport.abort()
        return "left"

    async def too_long(self, numbers: random.Random) -> str:
        return (await self._ask({"prompt": "long " * numbers.randint(9000, 100_000)}))[0]

    async def malformed(self, numbers: random.Random) -> str:
        bodies = [b"{", b"[" * 50_000, b"\xff\xfe\x00", b'{"prompt": "x"', b"", b"nul", b'{"prompt": 1e999}']
        return (await self._raw(numbers.choice(bodies)))[0]

    async def hostile(self, numbers: random.Random) -> str:
        return (await self._ask({"prompt": "x", "max_tokens": 4} | numbers.choice(HOSTILE)))[0]

    async def huge(self, numbers: random.Random) -> str:
        return (await self._raw(b"x" * 3_000_000))[0]

    async def never_ends(self, numbers: random.Random) -> str:
        _, writer = await self._open(b'{"prompt"', length=10_000)
        await asyncio.sleep(numbers.random() * 5)
        writer.close()
        return "left"

    async def nowhere(self, numbers: random.Random) -> str:
        path = numbers.choice(["/v2/x", "/playground/..%2f..%2fapp.py", "/%00", "/v1/models/" + "x" * 3000])
        return (await self._raw(b"", path, "GET"))[0]

    def _asked(self, numbers: random.Random) -> tuple[dict[str, Any], str]:
        prompt = numbers.choice(PROMPTS)
        body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "speculative": numbers.choice(self._modes)}
        return body, prompt

    def _judge(self, prompt: str, text: str) -> None:
        self.seen.compared += 1
        if text != self._expected[prompt]:
            self.seen.wrong.append(f"{prompt!r}: {text!r} is not {self._expected[prompt]!r}")

    async def _ask(self, body: dict[str, Any]) -> tuple[str, bytes]:
        return await self._raw(json.dumps(body).encode())

    async def _raw(self, data: bytes, path: str = "/v1/completions", method: str = "POST") -> tuple[str, bytes]:
        """Status and body."""
        reader, writer = await self._open(data, path=path, method=method)
        try:
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1.1 (\d+)", head)
        return found[1].decode() if found else "no answer", body

    async def _open(
        self, data: bytes, length: int | None = None, path: str = "/v1/completions", method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(head.encode() + f"Content-Length: {length or len(data)}\r\n\r\n".encode() + data)
        return reader, writer


async def abuse(port: int, server: int, asked: argparse.Namespace, expected: dict[str, str]) -> Seen:
    """All clients, and memory noted meanwhile."""
    modes = ["off", asked.mode, *(["fixed3"] if asked.mode == "adaptive" else [])]
    began = time.monotonic()
    clients = Clients(port, expected, began + 60 * asked.minutes, modes)

    async def watch() -> None:
        while True:
            clients.seen.memory.append((time.monotonic() - began, resident(server)))
            await asyncio.sleep(5)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*map(clients.client, range(asked.clients)))
    watching.cancel()
    return clients.seen


async def idle(port: int) -> dict[str, Any]:
    """The server's state once nobody is served."""
    clients = Clients(port, {}, 0, [])
    for _ in range(120):
        state: dict[str, Any] = json.loads((await clients._raw(b"", "/dspark/state", "GET"))[1])
        if not state["running"] + state["waiting"] and state["kv_cache_usage"] == 0:
            break
        await asyncio.sleep(0.5)
    return state | {"health": (await clients._raw(b"", "/health", "GET"))[0]}


def resident(pid: int) -> float:
    """Megabytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, default=200)
    arguments.add_argument("--minutes", type=float, default=3.0)
    arguments.add_argument("--mode", default="adaptive")
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    target = load_quietly("smollm2-135m")
    decoder, expected = Decoder(target), {}
    for prompt in PROMPTS:
        request = Request("reference", target.chat.encode(prompt), Sampling(), 0, TOKENS)
        expected[prompt] = target.chat.decode(decoder.answer(request, "plain").output_ids)
    command = [sys.executable, "-c", "from dspark.cli.main import run; run()", "serve", "--port", "0"]
    command += ["--mode", asked.mode, "--cache-tokens", "8192", "--max-waiting", "64"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = next(int(found[1]) for line in server.stdout if (found := re.search(r"listening http://[\d.]+:(\d+)", line)))
    try:
        seen = asyncio.run(abuse(port, server.pid, asked, expected))
        state = asyncio.run(idle(port))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    half = len(seen.memory) // 2
    for (act, came), count in sorted(seen.counts.items()):
        print(f"{act:16} {came:12} {count:7}")
    print(f"{seen.compared} greedy answers compared, {len(seen.wrong)} wrong {seen.wrong[:3]}")
    print(f"memory in the middle {seen.memory[half][1]:.0f} MB, at the end {seen.memory[-1][1]:.0f} MB")
    print(f"then: {state}; exit code {code}")
    if asked.json is not None:
        counts = {f"{act}, {came}": count for (act, came), count in seen.counts.items()}
        found = {"counts": counts, "wrong": seen.wrong, "compared": seen.compared, "memory": seen.memory}
        write_json(asked.json, found | {"state": state, "exit_code": code})
    failed = any(int(came) >= 500 and came != "503" for _, came in seen.counts if came.isdecimal())
    if seen.wrong or failed or code or state["kv_cache_usage"] or state["health"] != "200":
        raise SystemExit("failed")


if __name__ == "__main__":
    main()
