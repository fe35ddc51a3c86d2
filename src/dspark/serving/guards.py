"""What stands before every route: names that the server may be asked by, the key, and bounds on what a body may hold
and how slowly it may come.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark.serving.errors import ApiError
from dspark.serving.service import Bounds

_KEPT = ("/v1", "/tokenize", "/detokenize")


class Guards:
    """An ASGI application around another; ``key`` is asked for where prompts are, and open is what tells none.

    ``hosts``: names besides loopback's that requests may be for, None for any.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds, key: str | None, hosts: frozenset[str] | None = None) -> None:
        self._app, self._bounds, self._key, self._hosts = app, bounds, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refused(scope["path"], headers)
        if error is not None:
            await response_of(error)(scope, receive, send)
            return
        await self._app(scope, _Bounded(receive, self._bounds), send)

    def _refused(self, path: str, headers: Headers) -> ApiError | None:
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts and not _is_loopback(host):
            said = f"this server is not known as {host[:200]!r}; where it should be, start it with --allowed-host"
            return ApiError(421, said, code="unknown_host")
        if self._key is not None and path.startswith(_KEPT):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
                said = "this server needs an API key; send it as 'Authorization: Bearer KEY'"
                return ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and int(length[:20]) > self._bounds.body_bytes:
            return _too_large(self._bounds)
        return None


class _Bounded:
    """Receives a body within bounds; ApiError where it is too large or too slow."""

    def __init__(self, receive: Receive, bounds: Bounds) -> None:
        self._receive, self._bounds = receive, bounds
        self._bytes, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._bounds.body_seconds)
        except TimeoutError as error:
            raise ApiError(408, "the body did not come in time", code="timeout") from error
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._bounds.body_bytes:
            raise _too_large(self._bounds)
        return message


def hosts_of(bound: str, allowed: Sequence[str] | None) -> frozenset[str] | None:
    """Names besides loopback's that a server bound to ``bound`` may be asked by; None: any, where it is open and
    nobody said which. A page elsewhere can have its own name resolve to this machine, and none of these.
    """
    if not allowed and not _is_loopback(_name(bound)):
        return None
    return frozenset(map(_name, [bound, *(allowed or ())]))


def _name(host: str) -> str:
    """Without its port: "[::1]:8000" is "::1"."""
    inside, closed, _ = host.removeprefix("[").partition("]")
    name = inside if closed or host.count(":") > 1 else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def response_of(error: ApiError) -> JSONResponse:
    """As it is sent."""
    return JSONResponse(error.body(), error.status, error.headers)


def _too_large(bounds: Bounds) -> ApiError:
    said = f"the body is larger than the {bounds.body_bytes} bytes that this server takes"
    return ApiError(413, said, code="body_too_large", headers={"Connection": "close"})
