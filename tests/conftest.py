"""What every test runs under: no network beyond this machine, the same examples every time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

# Before any test imports them: a model that isn't on the disk is an error, never a download.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # silences a warning about forks

import hypothesis
import pytest

# Same examples in every run; no deadline, since a busy machine is no failure of the code.
hypothesis.settings.register_profile("dspark", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("dspark")


def is_local(address: Any) -> bool:
    """Whether a socket address is a local path or a loopback one."""
    if not isinstance(address, tuple):
        return True  # a Unix socket
    return str(address[0]) in {"localhost", "::1", ""} or str(address[0]).startswith("127.")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if not is_local(address):
            raise RuntimeError(f"a test tried to connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that our own kernels can't be compiled for."""
    from dspark.kernels import machine

    monkeypatch.setattr(machine, "_NEEDED", {})
    machine.can_compile.cache_clear()
    yield
    machine.can_compile.cache_clear()
