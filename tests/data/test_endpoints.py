"""Answers over HTTP are the embedded core's, whatever goes wrong on the way; what can't be mended is listed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dspark.data.answering import Answerer, EmbeddedAnswerer
from dspark.data.endpoints import EndpointAnswerer, Patience
from dspark.data.prompts import Prompt
from dspark.data.regenerate import Asking, Regenerated, regenerate
from dspark.data.responses import read_responses
from dspark.decoding.engine import Limits
from dspark.foundation.errors import UserError
from dspark.speculation.sampling import Sampling
from servers import Server, serving
from tiny import STOP, tiny_target

TARGET = tiny_target(sharpness=2.0)
PROMPTS = [Prompt(f"p{i}", ("abcdefghij"[: 1 + i % 7], "more")[: 1 + i % 2]) for i in range(10)]
TURNS = 15
QUICK = Patience(attempts=4, timeout=10.0, first_rest=0.01, longest_rest=0.05)


def asked(answerer: Answerer, out: Path, prompts: Sequence[Prompt] = PROMPTS) -> Regenerated:
    asking = Asking("tiny", TARGET.chat, Sampling(), max_tokens=10, max_prompt=40, seed=1)
    return regenerate(answerer, prompts, out, asking)


def over_http(out: Path, servers: Sequence[Server], urls: Sequence[str] = (), **changes: Any) -> Regenerated:
    settings: dict[str, Any] = {"slots": 3, "patience": QUICK} | changes
    with ExitStack() as stack:
        found = [stack.enter_context(serving(server)).url for server in servers]
        stops = {0, *TARGET.stop_ids}  # a model that may stop at several: the tokenizer names the usual one
        return asked(EndpointAnswerer([*found, *urls], TARGET.chat, stops, **settings), out)


def rows(path: Path) -> dict[tuple[str, int], list[int]]:
    found = [((r.id, r.turn), r.output_ids) for r in read_responses(path)]
    assert len(dict(found)) == len(found), "a turn was answered twice"
    return dict(found)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[int]]:
    out = tmp_path_factory.mktemp("embedded") / "r.jsonl"
    asked(EmbeddedAnswerer(TARGET, Limits(4, 512)), out)
    return rows(out)


def test_answers_are_the_embedded_cores_and_no_more_is_asked_at_once_than_allowed(
    tmp_path: Path, expected: dict[tuple[str, int], list[int]]
) -> None:
    first, second = Server(TARGET), Server(TARGET)
    result = over_http(tmp_path / "r.jsonl", [first, second])
    assert rows(tmp_path / "r.jsonl") == expected
    assert (result.responses, result.failures, result.mismatched) == (TURNS, [], 0)
    assert first.asked and second.asked, "both took part"
    assert max(first.most_at_once, second.most_at_once) <= 3
    assert all(type(i) is int for body in first.asked for i in body["prompt"])


@pytest.mark.parametrize("fault", [500, 503, 429, "drop"])
def test_what_passes_is_tried_again(
    tmp_path: Path, expected: dict[tuple[str, int], list[int]], fault: int | str
) -> None:
    faults: list[int | str | None] = [fault, None, fault, fault, None]
    result = over_http(tmp_path / "r.jsonl", [Server(TARGET, faults=faults)])
    assert rows(tmp_path / "r.jsonl") == expected and not result.failures


def test_others_take_over_from_a_server_that_dies(tmp_path: Path, expected: dict[tuple[str, int], list[int]]) -> None:
    dying = Server(TARGET, faults=[None, *["drop"] * 100])
    result = over_http(tmp_path / "r.jsonl", [dying, Server(TARGET)])
    assert rows(tmp_path / "r.jsonl") == expected and not result.failures


@pytest.mark.parametrize(("fault", "reason"), [(400, "fault 400"), ("page", "did not answer with a completion")])
def test_what_is_refused_is_listed_and_asked_again_by_the_next_run(
    tmp_path: Path, expected: dict[tuple[str, int], list[int]], fault: int | str, reason: str
) -> None:
    out = tmp_path / "r.jsonl"
    result = over_http(out, [Server(TARGET, faults=[None, fault])], slots=1)
    assert len(result.failures) == 1 and reason in result.failures[0]["reason"]
    assert rows(out).keys() < expected.keys()
    again = over_http(out, [Server(TARGET)])
    assert not again.failures and rows(out) == expected


def test_a_server_that_stays_down_gives_up_after_its_attempts(tmp_path: Path) -> None:
    result = over_http(tmp_path / "r.jsonl", [Server(TARGET, faults=[500] * 1000)])
    assert len(result.failures) == len(PROMPTS) and result.responses == 0
    assert "4 attempts failed" in result.failures[0]["reason"]


def test_text_alone_is_tokenised_again_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    result = over_http(tmp_path / "r.jsonl", [Server(TARGET, text_only=True)])
    assert result.responses == TURNS
    ended = {r.output_ids[-1] for r in read_responses(tmp_path / "r.jsonl") if r.finish_reason == "stop"}
    assert ended == {STOP}, "the tokenizer's own end, not the smallest id that may end an answer"
    # The tiny tokenizer does not round-trip, so nearly all are counted; a control that the count is not always 0.
    assert result.mismatched > 0
    with pytest.raises(AssertionError):
        assert over_http(tmp_path / "s.jsonl", [Server(TARGET)]).mismatched > 0


def test_text_alone_can_be_refused(tmp_path: Path) -> None:
    result = over_http(tmp_path / "r.jsonl", [Server(TARGET, text_only=True)], need_ids=True)
    assert result.responses == 0 and "no token ids" in result.failures[0]["reason"]


def test_the_model_is_named_where_a_server_has_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="serves tiny, other; name one of them with --endpoint-model"):
        over_http(tmp_path / "r.jsonl", [Server(TARGET, models=("tiny", "other"))])
    server = Server(TARGET, models=("tiny", "other"))
    over_http(tmp_path / "r.jsonl", [server], model="other")
    assert {body["model"] for body in server.asked} == {"other"}


def test_nobody_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="http://127.0.0.1:9/v1: no models could be listed"):
        over_http(tmp_path / "r.jsonl", [], ["http://127.0.0.1:9/v1"])
