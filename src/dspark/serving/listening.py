"""From a socket to its end: binding early, serving, and stopping with grace."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from dspark.foundation.errors import UserError
from dspark.serving.app import create_app
from dspark.serving.service import Service

log = logging.getLogger("dspark.serving")

_BACKLOG = 1024
# Behind the grace for answers: for their last bytes to leave.
_AFTER = 2.0


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound, so that a taken port is known before models are loaded; UserError where it can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # A server that was killed a moment ago must not keep its port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            said = f"can't listen at {host}:{port} ({error.strerror or error}); choose another --port or --host"
            raise UserError(said) from error
        yield listener


def run(service: Service, listener: socket.socket, grace: float, access_log: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; answers under way then have ``grace`` seconds, a second signal ends them."""
    config = uvicorn.Config(
        create_app(service),
        access_log=access_log,
        log_config=None,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(grace + _AFTER) + 1,
        server_header=False,
    )
    _Server(config, service, grace).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells the worker when it has to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens, once it does."""
        await super().startup(sockets)
        for each in sockets or ():
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"listening http://{shown}:{port} (playground), http://{shown}:{port}/v1 (API)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.worker.drain(0.0 if self.force_exit else self._grace)
