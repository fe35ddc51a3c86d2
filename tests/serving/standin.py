"""A server that speaks the playground's side of the API, tells a script instead of decoding, and fails on demand."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

import dspark

FILES = Path(dspark.__file__).parent / "serving" / "playground"
# Stricter than it need be: whatever the page does under it, it does under the server's own.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

LATELY = 2.0  # seconds
Round = dict[str, Any]


def rounds_of(text: str, seed: int = 0) -> list[Round]:
    """A made-up course of rounds that commits ``text``: some drafts are right, some wrong, some rounds are copies."""
    chance = random.Random(seed)
    pieces = re.findall(r" ?\w+|\s+|[^\w\s]", text)
    words = [piece for piece in pieces if piece.startswith(" ") and piece.strip()] or [" no"]
    rounds: list[Round] = [{"source": None, "drafts": [], "accepted": 0, "tokens": pieces[:1]}]  # with the prompt
    at = 1
    while at < len(pieces):
        source = chance.choices(["drafter", "lookup", None], [7, 2, 1])[0]
        right = 0 if source is None else chance.choices(range(6), [2, 4, 5, 4, 2, 2])[0]
        right = min(right, len(pieces) - at - 1)
        wrong = 0 if source is None else chance.choices(range(4), [3, 4, 3, 1])[0]
        if right + wrong == 0:
            source = None
        tokens = pieces[at : at + right + 1]
        at += len(tokens)
        drafts = tokens[:right] + [chance.choice(words) for _ in range(wrong)]
        rounds.append({"source": source, "drafts": drafts, "accepted": right, "tokens": tokens})
    return rounds


@dataclass
class StandIn:
    """What the server tells and has been told.

    ``refusal``: (status, message, headers) of the next completion. ``breaks_after``: rounds until the stream ends with
    no word, or with an error if ``last_words`` holds one. ``pause``: seconds a round. ``looked``: times the state was
    asked for. ``left``: streams that nobody read to the end. A round that is "untold" comes as text alone.
    """

    rounds: list[Round] = field(default_factory=lambda: rounds_of("The sky is blue, and the sea is blue as well."))
    pause: float = 0.0
    key: str | None = None
    refusal: tuple[int, str, dict[str, str]] | None = None
    breaks_after: int | None = None
    last_words: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    looked: int = 0
    left: int = 0
    told: list[tuple[float, Round]] = field(default_factory=list)
    well: bool = True
    running: int = 0
    began: float = field(default_factory=time.monotonic)

    def state(self) -> dict[str, Any]:
        """What /dspark/state says."""
        now = time.monotonic()
        lately = [one for at, one in self.told if at > now - LATELY]
        tokens, drafts = (sum(len(one[kind]) for one in lately) for kind in ("tokens", "drafts"))
        return {
            "model": "smollm2-135m-instruct",
            "mode": "adaptive",
            "modes": ["off", "fixed1", "fixed2", "fixed4", "fixed7", "ngram", "adaptive"],
            "running": self.running,
            "waiting": 0,
            "kv_cache_usage": 0.04 + 0.02 * self.running,
            "tok_s": tokens / LATELY,
            "tau": tokens / len(lately) if lately else None,
            "verify_length": drafts / len(lately) if lately else None,
            "acceptance": sum(one["accepted"] for one in lately) / drafts if drafts else None,
            "resting": False,
            "step_ms": 1000 * self.pause if lately else None,
            "uptime_s": now - self.began,
        }

    def summary(self, mode: str, seconds: float) -> dict[str, Any]:
        """The figures of the whole script."""
        behind = self.rounds[1:]  # of the prompt
        lengths = [len(one["drafts"]) for one in behind]
        tokens = sum(len(one["tokens"]) for one in self.rounds)
        return {
            "mode": mode,
            "tau": sum(len(one["tokens"]) for one in behind) / max(1, len(behind)),
            "rounds": len(behind),
            "drafted": sum(one.get("drafted", len(one["drafts"])) for one in behind),
            "verified": sum(lengths),
            "accepted": sum(one["accepted"] for one in self.rounds),
            "verify_lengths": lengths,
            "tokens": tokens,
            "seconds": seconds,
            "tok_s": tokens / seconds,
        }

    async def stream(self, wish: dict[str, Any]) -> AsyncIterator[str]:
        """The script as server-sent events, as ``wish`` asks for it."""
        started = time.monotonic()
        self.running += 1
        whole = False
        try:
            for index, one in enumerate(self.rounds):
                if index == self.breaks_after:
                    if self.last_words is not None:
                        yield event({"error": {"message": self.last_words, "type": "server_error"}})
                    return
                await asyncio.sleep(self.pause)
                self.told.append((time.monotonic(), one))
                extra = {"dspark": {"rounds": [one]}} if wish.get("trace") and not one.get("untold") else {}
                yield event(chunk("".join(one["tokens"]), None) | extra)
            seconds = max(time.monotonic() - started, 1e-3)
            found = {"summary": self.summary(wish.get("mode") or "adaptive", seconds)}
            yield event(chunk("", "stop") | ({"dspark": found} if wish.get("summary") else {}))
            yield "data: [DONE]\n\n"
            whole = True
        finally:
            self.running -= 1
            self.left += not whole


def chunk(text: str, finish: str | None) -> dict[str, Any]:
    """One chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def event(data: dict[str, Any]) -> str:
    """As server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def failure(status: int, message: str, headers: dict[str, str]) -> Response:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


def application(standin: StandIn) -> FastAPI:
    """The routes that the page knows."""
    app = FastAPI()

    @app.get("/")
    def index() -> Response:
        return FileResponse(FILES / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/dspark/state")
    def state() -> Response:
        standin.looked += 1
        return JSONResponse(standin.state() if standin.well else {}, 200 if standin.well else 503)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        if standin.key and request.headers.get("Authorization") != f"Bearer {standin.key}":
            return failure(401, "No API key, or a wrong one.", {})
        body = await request.json()
        standin.asked.append(body)
        if standin.refusal:
            return failure(*standin.refusal)
        return StreamingResponse(standin.stream(body.get("speculative", {})), media_type="text/event-stream")

    app.mount("/playground", StaticFiles(directory=FILES))
    return app


@contextmanager
def serving(standin: StandIn) -> Iterator[str]:
    """Serve on a free port of loopback while the body runs; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(standin), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < until, "the stand-in did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
