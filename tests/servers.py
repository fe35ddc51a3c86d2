"""An OpenAI-compatible server of the tiny target on loopback, with faults on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dspark.decoding.request import Request
from dspark.decoding.single import Decoder
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target


@dataclass
class Server:
    """What one server did and is to do wrong: ``faults`` are spent from the left, one a completion request.

    A fault is a status, "drop" (the connection is closed without an answer), "page" (JSON that is no completion), or
    None for a proper answer.
    """

    target: Target
    models: tuple[str, ...] = ("tiny",)
    faults: list[int | str | None] = field(default_factory=list)
    text_only: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The target's own answer."""
        request = Request("x", body["prompt"], Sampling(body["temperature"], top_p=body["top_p"]), body["seed"], 0)
        completion = Decoder(self.target).answer(
            Request("x", request.prompt_ids, request.sampling, request.seed, body["max_tokens"]), "plain"
        )
        ids = completion.output_ids
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.target.chat.decode(ids),
            "finish_reason": completion.finish_reason,
            "logprobs": None,
        }
        if not self.text_only:
            choice["token_ids"] = ids
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids), "total_tokens": 0}
        head = {"id": "c", "object": "text_completion", "created": 0, "model": body["model"]}
        return head | {"choices": [choice], "usage": usage}

    def enter(self, body: dict[str, Any]) -> int | str | None:
        """Note a request; the fault that it is to meet."""
        with self._lock:
            self.asked.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        """Note the end of a request."""
        with self._lock:
            self._now -= 1


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port of loopback while the body runs."""
    lock = threading.Lock()  # the tiny target decodes one request at a time

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            self._reply(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = server.enter(body)
            try:
                if fault == "drop":
                    self.close_connection = True
                elif fault == "page":
                    self._reply(200, {"hello": "world"})
                elif isinstance(fault, int):
                    self._reply(fault, {"error": {"message": f"fault {fault}", "type": "fault"}})
                else:
                    with lock:
                        found = server.complete(body)
                    self._reply(200, found)
            finally:
                server.leave()

        def _reply(self, status: int, found: dict[str, Any]) -> None:
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}/v1"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
