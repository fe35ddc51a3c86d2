"""The routes: each a few lines between HTTP and the service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, JSONResponse, Response

import dspark
from dspark.serving.described import (
    ChatCompletion,
    Detokenized,
    ErrorBody,
    ModelCard,
    ModelList,
    State,
    TextCompletion,
    Tokenized,
)
from dspark.serving.errors import ApiError
from dspark.serving.metrics import CONTENT_TYPE
from dspark.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from dspark.serving.service import Job, Service
from dspark.serving.shapes import ChatShape, CompletionShape, Shape
from dspark.serving.streams import Answered, Streamed

PLAYGROUND = Path(__file__).parent / "playground"
# A page and its modules are of one version.
FRESH = {"Cache-Control": "no-cache"}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}

Responses = dict[int | str, dict[str, Any]]


def _refusals(*statuses: int) -> Responses:
    return {status: {"model": ErrorBody} for status in statuses}


ANYWHERE = _refusals(413, 421)
"""What the guards in front of all routes refuse with; the key is asked for at some."""
_ASKING = _refusals(400, 401, 404, 408, 429, 500, 503, 504)


def completions(service: Service) -> APIRouter:
    """What generates."""
    router, chat = APIRouter(), service.target.chat

    def answered(job: Job, shape: Shape) -> Response:
        return (Streamed if job.asked.stream else Answered)(service, job, shape)

    def described(model: type) -> Any:
        return {"responses": _ASKING | {200: {"model": model, "content": _EVENTS}}, "response_class": JSONResponse}

    @router.post("/v1/chat/completions", **described(ChatCompletion))
    async def chat_completions(asked: ChatRequest) -> Response:
        job = await service.chat_job(asked)
        return answered(job, ChatShape(job, chat))

    @router.post("/v1/completions", **described(TextCompletion))
    async def text_completions(asked: CompletionRequest) -> Response:
        job = await service.completion_job(asked)
        return answered(job, CompletionShape(job, chat))

    return router


def models(service: Service) -> APIRouter:
    """Models and tokens."""
    router, chat = APIRouter(), service.target.chat
    length = min(service.target.max_positions, service.engine.room)
    card = ModelCard(
        id=service.model,
        object="model",
        created=int(service.started),
        owned_by="dspark",
        max_model_len=length,
    )

    @router.get("/v1/models", responses=_refusals(401))
    async def list_models() -> ModelList:
        return ModelList(object="list", data=[card])

    @router.get("/v1/models/{model:path}", responses=_refusals(400, 401, 404))
    async def one_model(model: str) -> ModelCard:
        service.check_model(model)
        return card

    @router.post("/tokenize", responses=_refusals(400, 401, 404, 408))
    async def tokenize(asked: TokenizeRequest) -> Tokenized:
        service.check_model(asked.model)
        if asked.messages is not None:
            ids = await service.chat_ids(asked.messages)
        else:
            ids = await service.text_ids(asked.prompt or "", asked.add_special_tokens)
        return Tokenized(count=len(ids), max_model_len=length, tokens=ids)

    @router.post("/detokenize", responses=_refusals(400, 401, 404, 408))
    async def detokenize(asked: DetokenizeRequest) -> Detokenized:
        service.check_model(asked.model)
        return Detokenized(prompt=chat.decode(service.checked_ids(asked.tokens, "tokens")))

    return router


def facts(service: Service) -> APIRouter:
    """How the server is; open to all, since it tells nothing of what is asked."""
    router = APIRouter()

    @router.get("/health", responses=_refusals(503))
    async def health() -> dict[str, str]:
        service.worker.check(0)
        return {"status": "ok"}

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": dspark.__version__}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/dspark/state")
    async def state() -> State:
        known: dict[str, Any] = {"model": service.model, "mode": service.mode.name, "modes": service.modes}
        uptime = time.monotonic() - service.since
        return State(**known, **service.metrics.state(), uptime_s=uptime)

    @router.get("/", include_in_schema=False)
    async def playground() -> Response:
        page = PLAYGROUND / "index.html"
        if not page.is_file():
            raise ApiError(404, "this installation has no playground")
        return FileResponse(page, headers=FRESH | {"Content-Security-Policy": "frame-ancestors 'none'"})

    return router
