"""Requests that are wrong, or meant to harm: each gets its own 4xx in OpenAI's shape, and nobody else notices."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx2 as httpx
import pytest

from dspark.serving.guards import hosts_of
from tiny_server import Serve, Served, Tiny

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
# (body beside what makes it a request, the field that is blamed)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e-9}, ""),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2.5}, "top_k"),
    ({"min_p": 1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**9}, "n"),
    ({"seed": 2**70}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**7}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["x" * 1000]}, "stop.0"),
    ({"stop": [1]}, "stop.0"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"min_tokens": 99, "max_tokens": 9}, "min_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, ""),
    ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, ""),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"speculative": "warp"}, "speculative"),
    ({"speculative": "ngram"}, "speculative"),
    ({"speculative": "fixed99"}, "speculative"),
    ({"speculative": {"mode": "fixed", "draft_tokens": 0}}, "speculative"),
    ({"speculative": {"mode": "off", "draft_tokens": 3}}, "speculative.draft_tokens"),
    ({"speculative": {"depth": 1}}, "speculative"),
    ({"priority": 2**40}, "priority"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"best_of": 3}, "best_of"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"logprobs": 21}, "logprobs"),
]


def blamed(answer: httpx.Response, status: int = 400) -> str:
    """The field that an error names; it must have OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error["param"] or ""


@pytest.mark.parametrize("more, param", WRONG, ids=lambda each: str(each)[:40])
def test_each_wrong_field_is_named(server: Served, more: dict[str, Any], param: str) -> None:
    for path, body in ((TEXT, {"prompt": "x"}), (CHAT, {"messages": HELLO})):
        found = blamed(server.post(path, body | more))
        assert found == param or (param == "speculative" and found.startswith(param)) or param.startswith(found + ".")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "pirate", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        {"messages": [{"role": "user", "content": "x", "name": "bob"}]},
        {"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4},
        {"messages": HELLO, "top_logprobs": 3},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": HELLO, "\ud800": 1},
    ],
    ids=lambda each: json.dumps(each)[:50],
)
def test_messages_that_are_none(server: Served, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    blamed(httpx.post(server.url + CHAT, content=data, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("prompt", ["", [], [[]], [-1], [10**6], [1.5], [True], ["a", 1], {"a": 1}, None, "x" * 300])
def test_prompts_that_are_none(server: Served, prompt: Any) -> None:
    assert blamed(server.post(TEXT, {"prompt": prompt})).startswith("prompt")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"prompt": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"5" * 10_000,
        b"null",
        b"[]",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bodies_that_are_no_requests(server: Served, data: bytes) -> None:
    for path in (TEXT, CHAT, "/tokenize", "/detokenize"):
        blamed(httpx.post(server.url + path, content=data, headers={"content-type": "application/json"}))
    # A page elsewhere can make a browser send this without asking: it is no JSON.
    blamed(httpx.post(server.url + TEXT, content=b'{"prompt": "x"}', headers={"content-type": "text/plain"}))


def test_numbers_that_json_does_not_have(server: Served) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        data = f'{{"prompt": "x", "temperature": {number}}}'.encode()
        assert blamed(httpx.post(server.url + TEXT, content=data, headers={"content-type": "application/json"})) in (
            "temperature",
            "",
        )


def test_paths_and_methods_that_there_are_not(server: Served) -> None:
    blamed(httpx.get(server.url + "/v2"), 404)
    blamed(httpx.get(server.url + "/playground/../../../etc/passwd"), 404)
    blamed(httpx.get(server.url + "/playground/%2e%2e/%2e%2e/errors.py"), 404)
    blamed(httpx.get(server.url + TEXT), 405)
    blamed(httpx.delete(server.url + "/health"), 405)
    blamed(server.post(TEXT, {"prompt": "x", "model": "gpt-4\n<script>"}), 404)


def test_bodies_that_are_too_large(serve: Serve) -> None:
    with serve("off", body_bytes=4096) as served:
        blamed(served.post(TEXT, {"prompt": "x" * 5000}), 413)
        chunks = (b"x" * 1000 for _ in range(10))  # a length that nobody announced
        blamed(httpx.post(served.url + TEXT, content=chunks, headers={"content-type": "application/json"}), 413)
        assert served.post(TEXT, {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_body_that_never_comes(serve: Serve) -> None:
    with serve("off", body_seconds=0.2) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b'{"prompt"')
            assert b" 408 " in connection.recv(65536)


def test_bounds_of_tokens(serve: Serve, tiny: Tiny) -> None:
    with serve("off", prompt_tokens=10, answer_tokens=12, answers=2) as served:
        assert blamed(served.post(TEXT, {"prompt": "x" * 11})) == "prompt"
        assert blamed(served.post(TEXT, {"prompt": "x", "max_tokens": 13})) == "max_tokens"
        assert blamed(served.post(TEXT, {"prompt": ["x", "y", "z"]})) == "n"
        body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "ignore_eos": True}
        assert served.post(CHAT, body).json()["usage"]["completion_tokens"] == 12


def test_a_name_that_a_page_elsewhere_had_resolve_to_here(serve: Serve) -> None:
    with serve("off", hosts=hosts_of("127.0.0.1", ["Proxy.example"])) as served:
        port = served.url.rpartition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "[x]"):
            for path in ("/v1/models", "/", "/metrics", "/dspark/state"):
                answer = httpx.get(served.url + path, headers={"Host": host})
                blamed(answer, 421)
                assert "--allowed-host" in answer.json()["error"]["message"]
        for host in (f"127.0.0.1:{port}", "localhost", f"LocalHost.:{port}", "[::1]:80", "proxy.example:443"):
            assert httpx.get(served.url + "/v1/models", headers={"Host": host}).status_code == 200, host


def test_names_are_asked_for_where_they_protect() -> None:
    assert hosts_of("0.0.0.0", None) is None
    assert hosts_of("0.0.0.0", ["proxy.example:443"]) == {"0.0.0.0", "proxy.example"}
    assert hosts_of("::1", None) == {"::1"}


def test_who_has_no_key(serve: Serve) -> None:
    with serve("off", key="secret") as served:
        for headers in (
            {},
            {"Authorization": "secret"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer é"},
        ):
            sent = {name: value.encode() for name, value in headers.items()}
            answer = httpx.get(served.url + "/v1/models", headers=sent)
            blamed(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        blamed(served.post("/tokenize", {"prompt": "x"}), 401)
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(served.url + "/v1/models", headers=headers).status_code == 200
        assert served.post(TEXT, {"prompt": "x", "max_tokens": 2}, headers=headers).status_code == 200
        for path in ("/health", "/version", "/metrics", "/dspark/state"):
            assert httpx.get(served.url + path).status_code == 200
