"""The playground against the server itself: what holds for any server that speaks the API."""

from __future__ import annotations

import pytest
from test_playground import browser, page  # noqa: F401  # fixtures
from test_playground import test_a_conversation_shows_its_tokens_and_figures as test_a_conversation
from test_playground import test_every_control_has_a_name_and_keys_reach_it as test_controls
from test_playground import test_nothing_is_cut_off_on_a_phone_or_a_wide_screen as test_widths
from test_playground import test_the_server_names_its_model_and_its_mode as test_names

from tiny_server import Served

pytestmark = pytest.mark.browser
__all__ = ["test_a_conversation", "test_controls", "test_names", "test_widths"]


@pytest.fixture
def address(server: Served) -> str:
    return server.url
