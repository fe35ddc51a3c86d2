"""A server of the tiny pair on loopback, and what it must answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn
from openai import OpenAI

from dspark.decoding.engine import Limits
from dspark.decoding.named import Speculation
from dspark.decoding.planners import Adaptive
from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.drafters.checkpoint import load_drafter
from dspark.drafters.dspark import DSparkDrafter
from dspark.serving.app import create_app
from dspark.serving.listening import listen
from dspark.serving.service import Bounds, Service
from dspark.speculation.cost import CostModel
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target, load_target
from tiny_pair import make_drafter, make_target, make_tokenizer

# Drafts are cheap here, so that adaptive decoding drafts.
COSTS = CostModel((1, 8, 32), (1, 8), (1.0, 0.02, 0.2, 0.0, 0.0, 0.0, 0.0, 0.005, 0.01, 0.0, 0.0))
LIMITS = Limits(4, 1600, block=16)


@dataclass(frozen=True)
class Tiny:
    """The pair, on the disk and loaded."""

    folder: Path
    drafter_folder: Path
    target: Target
    drafter: DSparkDrafter

    def text(self, prompt: str, tokens: int, **more: Any) -> str:
        """What a greedy completion of so many tokens must say."""
        return self.target.chat.decode(self.ids(self.target.chat.encode(prompt), tokens, **more))

    def ids(self, prompt: list[int], tokens: int, **more: Any) -> list[int]:
        """Its ids."""
        request = Request("reference", prompt, Sampling(), 0, tokens, **more)
        return Decoder(self.target).answer(request, "plain").output_ids

    def chat(self, content: str, tokens: int) -> str:
        """What a greedy chat must say."""
        prompt = self.target.chat.prompt_ids([{"role": "user", "content": content}])
        return self.target.chat.decode(self.ids(prompt, tokens))


@dataclass(frozen=True)
class Served:
    """A server that runs: its URL without /v1, and what it serves."""

    url: str
    service: Service

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, **more)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/dspark/state", timeout=30).json()
        return found

    def idle(self) -> None:
        """Wait until nobody is served; every block must be free then."""
        until(lambda: self.service.worker.requests == 0)
        until(lambda: self.service.metrics.kv_usage == 0)
        assert self.state()["running"] == self.state()["waiting"] == 0


Serve = Callable[..., AbstractContextManager[Served]]


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def make_tiny(home: Path) -> Tiny:
    """Save the pair there, and load it."""
    folder = make_target(home / "tiny", make_tokenizer())
    drafter_folder = make_drafter(home / "drafter", folder)
    target = load_target(str(folder), "float32", "cpu")
    drafter = load_drafter(drafter_folder, target.identity, target.ends, target.dtype, target.device)
    return Tiny(folder, drafter_folder, target, drafter)


@contextmanager
def served(tiny: Tiny, mode: str = "adaptive", limits: Limits = LIMITS, **bounds: Any) -> Iterator[Served]:
    """Serve on a free port while the body runs; ``key``, ``hosts`` and ``Bounds``."""
    key, hosts, speculation = bounds.pop("key", None), bounds.pop("hosts", None), Speculation.named(mode, 4)
    service = Service.of(
        tiny.target, tiny.drafter, speculation, Adaptive(COSTS), limits, Bounds(**bounds), model="tiny", key=key
    )
    service.hosts = hosts
    config = uvicorn.Config(create_app(service), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()
