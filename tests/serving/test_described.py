"""The OpenAPI description and what the server does are held together by generated requests, proper and hostile."""

from __future__ import annotations

import httpx2 as httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dspark.serving.described import ErrorBody
from tiny_server import Serve, Served

PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize"),
    *("/health", "/version", "/metrics", "/dspark/state"),
}
HELD = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = {"/v1/chat/completions": 100, "/v1/completions": 100, "/tokenize": 40, "/detokenize": 40}
CASES = [(path, GenerationMode.POSITIVE) for path in sorted(PATHS)]
CASES += [(path, GenerationMode.NEGATIVE) for path in EXAMPLES]  # what has no body can hold nothing wrong


@pytest.mark.parametrize(("path", "mode"), CASES, ids=lambda each: getattr(each, "value", each))
def test_every_answer_is_described_and_none_is_a_failure(server: Served, path: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for operation in (each.ok() for each in schema.get_all_operations()):
        if operation.path != path:
            continue

        @hypothesis.settings(
            max_examples=EXAMPLES.get(path, 5),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def answered(case: Case) -> None:
            if isinstance(case.body, dict):
                case.body.pop("stream", None)  # the other form of an answer is tested elsewhere
                if isinstance(case.body.get("max_tokens"), int):
                    case.body["max_tokens"] = min(case.body["max_tokens"], 3)
            case.call_and_validate(checks=HELD, timeout=30)

        answered()


def test_the_description_promises_what_there_is(server: Served) -> None:
    found = httpx.get(f"{server.url}/openapi.json").json()
    assert set(found["paths"]) == PATHS
    assert not any("422" in each["responses"] for path in found["paths"].values() for each in path.values())


def test_what_the_guards_refuse_is_described_everywhere(serve: Serve) -> None:
    """A name that is not this machine's, and a body that is too large, whatever is asked."""
    with serve("off", hosts=frozenset({"localhost"}), body_bytes=2048) as served:
        paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
        assert set(paths) == PATHS
        for path, method in ((path, method) for path, methods in paths.items() for method in methods):
            url = served.url + path.replace("{model}", "tiny")
            for headers, body, status in (({"Host": "evil.example"}, b"", 421), ({}, b"x" * 2049, 413)):
                answer = httpx.request(method.upper(), url, headers=headers, content=body)
                assert answer.status_code == status
                ErrorBody.model_validate(answer.json())
                said = paths[path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
                assert said["$ref"].endswith("/ErrorBody")
