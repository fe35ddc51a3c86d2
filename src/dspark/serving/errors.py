"""Errors as OpenAI's clients read them: a status, and what was wrong with which parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
# Between a field and what is inside it pydantic names the form that it tried (str, list[int], a model).
_FORMS = ("str", "int", "TextPart", "SpeculativeOptions")

# What OpenAI's requests may hold and this server can't do: refused by name, since ignoring it would change the answer.
UNSUPPORTED = frozenset(
    (
        *("audio", "best_of", "echo", "function_call", "functions", "guided_choice", "guided_grammar", "guided_json"),
        *("guided_regex", "modalities", "parallel_tool_calls", "prediction", "reasoning_effort", "response_format"),
        *("structured_outputs", "suffix", "tool_choice", "tools", "verbosity", "web_search_options"),
    )
)


class ApiError(HTTPException):
    """A request that ends with an error of HTTP ``status``; ``param``: the field that was wrong, where one was."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As it is sent."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of what pydantic found wrong with a body. Nothing of what was sent is repeated but names of fields."""
    first = errors[0]
    where = [str(part) for part in first["loc"][1:] if "[" not in str(part) and part not in _FORMS]
    param = ".".join(where)[:200] or None
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        known = where[-1] in UNSUPPORTED
        said = "is not supported by this server" if known else "is no parameter of this request"
        code = "unsupported_parameter" if known else "unknown_parameter"
        return ApiError(400, f"{param} {said}; leave it out", param=param, code=code)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param, code="invalid_value")
