"""The server as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import dspark
from dspark.serving.errors import ApiError, of_validation
from dspark.serving.guards import Guards, response_of
from dspark.serving.journal import journal
from dspark.serving.routes import ANYWHERE, FRESH, PLAYGROUND, completions, facts, models
from dspark.serving.service import Service

log = logging.getLogger("dspark.serving")

_SAID = {404: "there is nothing at this path", 405: "this path does not take that method"}


def create_app(service: Service) -> FastAPI:
    """Serves ``service``, whose worker runs while the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        async with journal(service.metrics):
            yield
        await service.worker.stop()

    app = FastAPI(
        title="dspark",
        version=dspark.__version__,
        lifespan=lifespan,
        docs_url=None,  # the pages would load scripts from elsewhere
        redoc_url=None,
        responses=ANYWHERE,
    )
    for router in (completions(service), models(service), facts(service)):
        app.include_router(router)
    if PLAYGROUND.is_dir():
        app.mount("/playground", _Fresh(directory=PLAYGROUND), name="playground")
    app.add_middleware(Guards, bounds=service.bounds, key=service.key, hosts=service.hosts)
    _errors(app)
    _describe(app)
    return app


class _Fresh(StaticFiles):
    """Files that a browser asks for again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See ``StaticFiles``."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


def _errors(app: FastAPI) -> None:
    """Everything that goes wrong, in OpenAI's shape."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if not isinstance(error, ApiError):
            said = _SAID.get(error.status_code, str(error.detail))
            error = ApiError(error.status_code, said, headers=error.headers)
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return response_of(of_validation(error.errors()))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return response_of(ApiError(500, "the server failed at this request; its log says where"))


def _describe(app: FastAPI) -> None:
    """The OpenAPI description, without the 422 that FastAPI promises everywhere and nobody gets here."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in made()["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
