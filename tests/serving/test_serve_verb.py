"""`dspark serve` as a process: what it says, what it serves, how it ends, and how it begins again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai import OpenAI

from dspark.cli.main import main
from dspark.speculation.cost import CostModel
from tiny_server import COSTS, Tiny, until


class Process:
    """A server that was started as people start it."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-c", "from dspark.cli.main import run; run()", "serve", *map(str, arguments)]
        # What it says goes to a reader of its own: a full pipe would stop it.
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.url is not None or self._process.poll() is not None, 100)

    @property
    def url(self) -> str | None:
        found = re.search(r"listening (http://\S+) ", "".join(self.said))
        return found[1] if found else None

    @property
    def port(self) -> int:
        return int(str(self.url).rpartition(":")[2])

    def end(self, number: int) -> int:
        """Its exit code after that signal."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
        code = self._process.wait(timeout=30)
        self._reader.join(timeout=10)
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)


@contextmanager
def process(*arguments: object) -> Iterator[Process]:
    started = Process(*arguments)
    try:
        yield started
    finally:
        started.end(signal.SIGKILL)


@pytest.fixture
def options(tiny: Tiny, tmp_path: Path) -> list[object]:
    """Of the tiny pair, whose costs need no measuring."""
    COSTS.save(tmp_path / "costs.json")
    assert isinstance(COSTS, CostModel)
    pair: list[object] = ["--target", tiny.folder, "--drafter", tiny.drafter_folder, "--device", "cpu"]
    return [*pair, "--dtype", "float32", "--name", "tiny", "--costs", tmp_path / "costs.json", "--cache-tokens", 1600]


def test_killed_it_begins_again_at_once_at_the_same_port(tiny: Tiny, options: list[object]) -> None:
    body: dict[str, Any] = {"prompt": "again", "max_tokens": 20, "temperature": 0}
    port = 0
    for ending, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        with process(*options, "--port", port) as server:
            said = "".join(server.said)
            assert server.url is not None, said
            assert "127.0.0.1" in server.url
            assert said.startswith(f"loading   {tiny.folder};"), "it is told before the wait"
            assert re.search(r"^mode +adaptive", said, re.MULTILINE)
            assert port in (0, server.port)
            port = server.port
            with httpx.Client(base_url=server.url, timeout=30) as client:
                answer = client.post("/v1/completions", json=body).json()
                assert answer["choices"][0]["text"] == tiny.text("again", 20)
                assert server.end(ending) == code
            assert "again" not in "".join(server.said)


def test_stopped_it_finishes_what_is_under_way(tiny: Tiny, options: list[object]) -> None:
    with process(*options, "--port", 0, "--grace", 20) as server:
        body = {"prompt": "end", "max_tokens": 140, "temperature": 0, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            codes: list[int] = []
            ending = threading.Thread(target=lambda: codes.append(server.end(signal.SIGINT)))
            ending.start()
            said = [line for line in lines if line]
        ending.join(timeout=30)
        assert codes == [0]
        assert said[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in said[-2]


def test_mistakes_are_one_line_before_anything_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for wrong, said in (
            (["--port", taken.getsockname()[1]], "can't listen at 127.0.0.1"),
            (["--mode", "warp"], "no mode 'warp'"),
            (["--port", 99999], "'--port'"),
            (["--host", "256.1.1.1"], "can't listen"),
            (["--mode", "off", "--costs", "x"], "--costs is for modes adaptive and delayed"),
            (["--max-waiting", -1], "'--max-waiting'"),
        ):
            assert main(["serve", "--target", "nowhere", "--port", "0", *map(str, wrong)]) == 2
            out, err = capfd.readouterr()
            assert not out
            assert len(err.splitlines()) == 1
            assert said in err


def test_the_bundled_pair_as_people_meet_it() -> None:
    """The story: started with nothing but a mode, asked by OpenAI's client, told how it was drafted for."""
    with process("--mode", "fixed3", "--port", 0, "--slots", 2, "--cache-tokens", 2048) as server:
        assert server.url is not None, "".join(server.said)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        model = client.models.list().data[0].id
        texts = []
        for mode in ("off", "fixed3"):
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Write a Python function that adds two numbers."}],
                max_tokens=40,
                temperature=0,
                stream=True,
                extra_body={"speculative": {"mode": mode, "summary": True}},
            )
            chunks = list(stream)
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
            summary = chunks[-1].model_extra["dspark"]["summary"]  # type: ignore[index]
            assert (summary["accepted"] > 0) == (mode != "off")
        assert texts[0] == texts[1]
        assert "def" in texts[0]
        assert server.end(signal.SIGTERM) == 0
