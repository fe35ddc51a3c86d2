"""The playground against `dspark serve` with the bundled pair: what people see of a model that says something."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from test_playground import Page, browser, page  # noqa: F401  # fixtures
from test_serve_verb import Process

pytestmark = pytest.mark.browser
ANSWER = 40  # tokens


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = Process("--mode", "fixed4", "--port", 0, "--slots", 2, "--cache-tokens", 2048, "--device", "cpu")
    assert server.url is not None, "".join(server.said)
    yield server.url
    assert server.end(signal.SIGTERM) == 0


def state(address: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{address}/dspark/state", timeout=30).json()
    return found


def drafted(address: str) -> float:
    """Tokens, so far."""
    lines = httpx.get(f"{address}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("dspark:drafted_tokens_total{"))


def free(page: Page, address: str) -> None:  # noqa: F811
    """Every block must be, soon."""
    page.until(lambda: state(address)["kv_cache_usage"] == 0 == state(address)["running"], "something is still held")


def test_a_conversation_of_two_turns_streams_and_shows_what_was_accepted(page: Page, address: str) -> None:  # noqa: F811
    page.fill("#max-tokens", str(ANSWER))
    for turn, text in enumerate(("Give me three tips for sleeping better.", "Which one is the easiest?"), start=1):
        page.send(text)
        page.until(lambda: page.all(".reply.streaming .tokens .token"), "nothing came before the end")
        page.rest()
        assert len(page.all(".reply:not(.streaming)")) == turn
        assert len(page.content(".text").split()) > 5
        assert page.one(".reply .text").is_displayed()
    assert any(token.is_displayed() and token.text.strip() for token in page.all(".tokens .token.accepted"))
    assert page.all(".tokens .token.own")
    assert not page.all(".failure")
    free(page, address)


def test_the_switch_changes_what_is_drafted(page: Page, address: str) -> None:  # noqa: F811
    page.fill("#max-tokens", str(ANSWER))
    before = drafted(address)
    page.mode("off")
    page.ask("Give me three tips for sleeping better.")
    text = page.content(".text")
    assert drafted(address) == before
    assert not page.all(".tokens .token:is(.accepted, .copied, .rejected)")
    page.one("#clear").click()
    page.mode("fixed")
    page.fill("#drafts", "3")
    page.ask("Give me three tips for sleeping better.")
    assert page.content(".text") == text  # temperature 0: whatever was drafted, the text is the target's
    assert drafted(address) > before
    assert page.all(".tokens .token:is(.accepted, .copied)")


def test_stop_in_the_middle_frees_what_was_held(page: Page, address: str) -> None:  # noqa: F811
    page.fill("#max-tokens", "1500")
    page.send("Write a very long story about a ship and its captain.")
    page.until(lambda: len(page.all(".tokens .token")) > 10, "nothing streamed")
    assert state(address)["kv_cache_usage"] > 0
    page.one("#stop").click()
    page.rest()
    assert "Stopped." in page.content(".reply")
    free(page, address)
    assert len(page.content(".text").split()) > 3
