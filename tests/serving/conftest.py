"""A server of the tiny pair, for all tests that do it no harm, and the means to start others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tiny_server import Serve, Served, Tiny, make_tiny, served


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def serve(tiny: Tiny) -> Serve:
    return partial(served, tiny)


@pytest.fixture(scope="session")
def shared(serve: Serve) -> Iterator[Served]:
    with serve() as running:
        yield running


@pytest.fixture
def server(shared: Served) -> Iterator[Served]:
    """The shared one, of which nothing may be held behind the test."""
    yield shared
    shared.idle()
