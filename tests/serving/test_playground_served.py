"""The playground against the server itself: it knows its server, and every control has a name.

The tiny model's answers may hold nothing that can be seen, so conversations are the stand-in's.
"""

from __future__ import annotations

import pytest
from test_playground import browser, page  # noqa: F401  # fixtures
from test_playground import test_every_control_has_a_name_and_keys_reach_it as test_controls
from test_playground import test_the_server_names_its_model_and_its_mode as test_names

from tiny_server import Served

pytestmark = pytest.mark.browser
__all__ = ["test_controls", "test_names"]


@pytest.fixture
def address(server: Served) -> str:
    return server.url
