"""Errors as OpenAI's clients read them: a status, and what was wrong with which parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
# Between a field and what is inside it pydantic names the form that it tried (str, list[int], a model).
_FORM = re.compile(r"(constrained-)?(str|int|float)|function-.*|.*\[.*|TextPart|SpeculativeOptions")
# What is inside these is named by whoever sent it.
_FREE = ("logit_bias", "metadata")

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
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    param = _named(first["loc"][1:])
    if first["type"] == "extra_forbidden":
        known = first["loc"][-1] in UNSUPPORTED
        said = "is not supported by this server" if known else "is no parameter of this request"
        code = "unsupported_parameter" if known else "unknown_parameter"
        return ApiError(400, f"{param} {said}; leave it out", param=param, code=code)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message}", param=param, code="invalid_value")


def _named(loc: Sequence[int | str]) -> str | None:
    """A field as people write it: messages.0.content."""
    if loc and loc[0] in _FREE:
        loc = loc[:1]
    where = [str(part) for part in loc if part == loc[-1] or not _FORM.fullmatch(str(part))]
    if len(loc) > 1 and _FORM.fullmatch(str(loc[-1])):
        where.pop()
    # Half a surrogate pair is a string in JSON, and none that can be sent.
    return ".".join(where)[:200].encode("ascii", "backslashreplace").decode() or None
