"""The OpenAPI description and what the server does are held together by generated requests, proper and hostile."""

from __future__ import annotations

import httpx2 as httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode

from tiny_server import Served


@pytest.fixture(scope="module")
def api(shared: Served) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_url(f"{shared.url}/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    return schema


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_answer_is_described_and_none_is_a_failure(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict):
        case.body.pop("stream", None)  # answers in another form, which is tested elsewhere
        case.body.setdefault("max_tokens", 4) if "prompt" in case.body else None
    case.call_and_validate(
        checks=[
            schemathesis.checks.not_a_server_error,
            *schemathesis.checks.CHECKS.get_by_names(
                ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
            ),
        ]
    )


def test_the_description_promises_what_there_is(shared: Served) -> None:
    found = httpx.get(f"{shared.url}/openapi.json").json()
    assert set(found["paths"]) == {
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize"),
        *("/health", "/version", "/metrics", "/dspark/state"),
    }
    assert not any("422" in each["responses"] for path in found["paths"].values() for each in path.values())
