"""Responses that end when their client goes: whole ones, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from dspark.serving.answers import Piece, pieces_of, whole
from dspark.serving.errors import ApiError
from dspark.serving.service import Job, Service
from dspark.serving.shapes import Shape, usage

T = TypeVar("T")

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_quote = json.encoder.encode_basestring  # what it writes a text with
_MARK = "\0"
# What a client may take to read the end of a stream, once the engine is through with it.
_SLOW = 30.0


class Answered(Response):
    """All answers of a job at once."""

    def __init__(self, service: Service, job: Job, shape: Shape) -> None:
        super().__init__()
        self._service, self._job, self._shape = service, job, shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = await unless_gone(whole(self._service, self._job), receive)
        if answers is not None:
            await JSONResponse(self._body(answers))(scope, receive, send)

    def _body(self, answers: list[Piece]) -> dict[str, Any]:
        job, written = self._job, sum(len(each.ids) for each in answers)
        body = _head(self._service, job, self._shape.object)
        body |= {"choices": [self._shape.choice(each) for each in answers], "usage": usage(job, written)}
        told = [_dspark(each) for each in answers]
        if job.asked.return_token_ids:
            body["prompt_token_ids"] = job.prompts[0]
        return body | ({"dspark": told[0]} if told[0] else {})


class Streamed(Response):
    """Answers of a job as they come, each event one chunk; the last one is ``[DONE]``."""

    def __init__(self, service: Service, job: Job, shape: Shape) -> None:
        super().__init__()
        self._service, self._job, self._shape = service, job, shape
        self._head = _encode(_head(service, job, shape.chunk_object))[:-1].encode()  # open: more follows
        options = job.asked.stream_options
        self._usage = options is not None and options.include_usage
        self._usages = options is not None and options.continuous_usage_stats
        asked = job.asked
        self._alike = not self._usages and asked.alternatives is None and not asked.return_token_ids
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._written = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.bounds.seconds + _SLOW
        with suppress(TimeoutError):  # it does not read: the connection is closed in the middle of the answer
            await unless_gone(asyncio.wait_for(self._send(send), limit), receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async with aclosing(pieces_of(self._service, self._job)) as coming:
                for choice in self._shape.openings():
                    await send(_part(self._chunk([choice])))
                async for piece in coming:
                    self._written += len(piece.ids)
                    if piece.tells:
                        await send(_part(self._told(piece)))
            if self._usage:
                await send(_part(self._event({"choices": [], "usage": usage(self._job, self._written)})))
        except ApiError as error:
            await send(_part(b"data: " + _encode(error.body()).encode() + b"\n\n"))
        await send(_part(b"data: [DONE]\n\n", last=True))

    def _told(self, piece: Piece) -> bytes:
        """Its event. Most of an answer's differ in their text alone, and only that is encoded."""
        if not (self._alike and piece.text) or piece.finish or piece.rounds:
            return self._chunk([self._shape.part(piece)], _dspark(piece))
        around = self._around.get(piece.index)
        if around is None:
            chunk = self._chunk([self._shape.part(Piece(piece.index, _MARK))])
            before, _, after = chunk.rpartition(_quote(_MARK).encode())
            around = self._around[piece.index] = before, after
        return around[0] + _quote(piece.text).encode() + around[1]

    def _chunk(self, choices: list[dict[str, Any]], told: dict[str, Any] | None = None) -> bytes:
        chunk: dict[str, Any] = {"choices": choices}
        if self._usages:
            chunk["usage"] = usage(self._job, self._written)
        elif self._usage:
            chunk["usage"] = None
        if told:
            chunk["dspark"] = told
        return self._event(chunk)

    def _event(self, chunk: dict[str, Any]) -> bytes:
        """Behind what all chunks of the job begin with."""
        return b"data: " + self._head + b"," + _encode(chunk)[1:].encode() + b"\n\n"


async def unless_gone(answering: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """What it gives; None, and it is cancelled, where the client goes before."""
    task = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _head(service: Service, job: Job, kind: str) -> dict[str, Any]:
    return {"id": job.id, "object": kind, "created": job.created, "model": service.model}


def _dspark(piece: Piece) -> dict[str, Any]:
    """What is told of drafting: rounds in a stream, the summary at an answer's end."""
    told: dict[str, Any] = {"rounds": piece.rounds} if piece.rounds else {}
    return told | ({"summary": piece.summary} if piece.summary else {})


def _part(body: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}
