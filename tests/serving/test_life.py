"""Clients that go, too many of them, time that runs out, an engine that fails, an end: nobody waits for ever."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import httpx2 as httpx
import pytest
import torch
from torch import Tensor

from dspark.decoding.engine import Engine, Limits
from dspark.serving import worker
from tiny_server import Serve, Served, Tiny, until

TEXT = "/v1/completions"
LONG = {"prompt": "long", "max_tokens": 140, "temperature": 0, "ignore_eos": True}


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Steps take that long."""
    step = Engine.step

    def slow(self: Engine, shares: Any) -> Any:
        time.sleep(seconds)
        return step(self, shares)

    monkeypatch.setattr(Engine, "step", slow)


def events(answer: httpx.Response) -> list[Any]:
    """What a stream said."""
    return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_takes_nothing_along(serve: Serve, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    slowly(monkeypatch)
    with serve(limits=Limits(2, 800, block=16)) as served:
        # Two are under way, two wait: all leave.
        clients = [httpx.Client(timeout=30) for _ in range(4)]
        threads = [threading.Thread(target=ask_and_leave, args=(client, served, stream)) for client in clients]
        for thread in threads:
            thread.start()
        until(lambda: served.service.worker.requests == 4)
        until(lambda: served.state()["running"] == 2 and served.state()["waiting"] == 2)
        for thread in threads:
            thread.join()
        served.idle()
        text = served.service.metrics.text().decode()
        assert 'finished_reason="abort",model_name="tiny"} 4.0' in text
        assert served.post(TEXT, LONG | {"max_tokens": 3}).status_code == 200


def ask_and_leave(client: httpx.Client, served: Served, stream: bool) -> None:
    """Leave in the middle of an answer."""
    if not stream:
        with pytest.raises(httpx.TimeoutException):
            client.post(served.url + TEXT, json=LONG, timeout=0.5)
        return
    with (
        pytest.raises(httpx.TimeoutException),
        client.stream("POST", served.url + TEXT, json=LONG | {"stream": True}, timeout=0.5) as answer,
    ):
        started = time.monotonic()
        for _ in answer.iter_lines():
            if time.monotonic() - started > 0.5:
                raise httpx.ReadTimeout("enough")


def test_too_many_are_told_to_come_back(serve: Serve, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    slowly(monkeypatch, 0.003)
    with serve("off", limits=Limits(1, 800, block=16), waiting=2) as served:
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(served.post(TEXT, LONG))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: served.service.worker.requests == 3)
        refused = served.post(TEXT, LONG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        for thread in threads:
            thread.join()
        expected = tiny.text("long", 140, ignore_stop=True)
        assert [answer.json()["choices"][0]["text"] for answer in answers] == [expected] * 3
        assert served.post(TEXT, LONG | {"max_tokens": 2}).status_code == 200


def test_time_runs_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    with serve("off", seconds=0.3) as served:
        answer = served.post(TEXT, LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        with httpx.stream("POST", served.url + TEXT, json=LONG | {"stream": True}, timeout=30) as stream:
            said = events(stream)
        assert said[-1] == "[DONE]"
        assert json.loads(said[-2])["error"]["code"] == "timeout"
        assert "choices" in json.loads(said[-3])
        served.idle()


def test_the_thread_that_loaded_the_model_has_no_team_of_its_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second team is more threads than CPUs, and every wait in a step a sleep (docs/lab_log.md)."""
    dismissed: list[str] = []
    monkeypatch.setattr(worker, "dismiss_team", lambda: dismissed.append(threading.current_thread().name))
    with serve("off") as served:
        assert served.post(TEXT, LONG | {"max_tokens": 2}).status_code == 200
    assert len(dismissed) == 1 and dismissed[0] != "engine"


def test_what_was_decoded_comes_before_an_end(serve: Serve, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    """A step's news wait for the next pass to begin; here there is none, and they are told all the same."""
    step, left, expected = Engine.step, [5], tiny.text("long", 5, ignore_stop=True)

    def failing(self: Engine, shares: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of luck")
        return step(self, shares)

    monkeypatch.setattr(Engine, "step", failing)
    with (
        serve("off") as served,
        httpx.stream("POST", served.url + TEXT, json=LONG | {"stream": True}, timeout=30) as stream,
    ):
        said = [json.loads(each) for each in events(stream)[:-1]]
    assert said[-1]["error"]["code"] == "engine_failed"
    assert "".join(each["choices"][0]["text"] for each in said[:-1]) == expected


def test_an_engine_that_fails(serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    step, left = Engine.step, [5]

    def failing(self: Engine, shares: Any) -> Any:
        left[0] -= 1
        time.sleep(0.02)
        if left[0] < 0:
            raise RuntimeError("out of luck")
        return step(self, shares)

    monkeypatch.setattr(Engine, "step", failing)
    caplog.set_level(logging.CRITICAL, "dspark.serving")
    with serve("off", limits=Limits(2, 800, block=16)) as served:
        assert httpx.get(served.url + "/health").status_code == 200
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(served.post(TEXT, LONG))) for _ in range(4)]
        for thread in threads:
            thread.start()
        with httpx.stream("POST", served.url + TEXT, json=LONG | {"stream": True}, timeout=30) as stream:
            said = events(stream)
        for thread in threads:
            thread.join(timeout=20)
        assert [answer.status_code for answer in answers] == [503] * 4
        assert {answer.json()["error"]["code"] for answer in answers} == {"engine_failed"}
        assert json.loads(said[-2])["error"]["code"] == "engine_failed"
        for answer in (httpx.get(served.url + "/health"), served.post(TEXT, LONG)):
            assert answer.status_code == 503
            assert "RuntimeError" in answer.json()["error"]["message"]
        assert httpx.get(served.url + "/metrics").status_code == 200


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["off", "fixed4", "adaptive"])
def test_a_request_without_numbers_falls_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, mode: str, number: float
) -> None:
    """The logits of one hold NaN or infinity, then those of its neighbours go on as if it had never been."""
    granted, poisoned = Engine._granted, []

    def poison(self: Engine, logits_NV: Tensor, works: Any) -> Tensor:
        rows = granted(self, logits_NV, works).clone().split([work.length + 1 for work in works])
        for work, mine_nV in zip(works, rows, strict=True):
            if work.row.request.prompt_ids == ill and len(work.row.output_ids) >= 6:
                mine_nV[:, 3] = number
                poisoned.append(len(works))
        return torch.cat(rows)

    ill, prompts = tiny.target.chat.encode("ill"), [f"well {n}" for n in range(3)]
    body = {"max_tokens": 60, "ignore_eos": True, "temperature": 0, "seed": 0}  # some draws write no text at first
    with serve(mode) as served:
        slowly(monkeypatch, 0.005)
        monkeypatch.setattr(Engine, "_granted", poison)
        found: dict[str, Any] = {}

        def ask(prompt: str) -> None:
            found[prompt] = served.post(TEXT, body | {"prompt": prompt}).json()["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        until(lambda: served.state()["running"] == 3)
        for temperature in (0, 0.8):  # found by the search for the largest, and by the sum of probabilities
            with httpx.stream(
                "POST", served.url + TEXT, json=body | {"prompt": "ill", "stream": True, "temperature": temperature}
            ) as stream:
                said = events(stream)
            assert "choices" in json.loads(said[0])
            assert json.loads(said[-2])["error"]["code"] == "not_finite"
        failed = served.post(TEXT, body | {"prompt": "ill"})
        assert failed.status_code == 500
        assert "NaN" in failed.json()["error"]["message"]
        for thread in threads:
            thread.join()
        assert found == {prompt: tiny.text(prompt, 60, ignore_stop=True) for prompt in prompts}
        assert len(poisoned) == 3
        assert max(poisoned) > 1
        served.idle()
        assert 'finished_reason="error",model_name="tiny"} 3.0' in served.service.metrics.text().decode()
        monkeypatch.setattr(Engine, "_granted", granted)
        answer = served.post(TEXT, body | {"prompt": "ill"}).json()
        assert answer["choices"][0]["text"] == tiny.text("ill", 60, ignore_stop=True)


@pytest.mark.parametrize("mode", ["fixed4", "adaptive"])
def test_a_drafter_that_breaks_is_done_without(serve: Serve, tiny: Tiny, mode: str) -> None:
    """In the middle of the answers; it is well again later."""
    prompts, body = [f"drafted {n}" for n in range(3)], {"max_tokens": 60, "ignore_eos": True, "temperature": 0}
    weight = tiny.drafter.norm.weight.data
    before, found = weight.clone(), dict[str, str]()
    with serve(mode) as served:

        def ask(prompt: str) -> None:
            found[prompt] = served.post(TEXT, body | {"prompt": prompt}).json()["choices"][0]["text"]

        step, steps = served.service.engine.step, []

        def breaking(shares: Any) -> Any:
            steps.append(len(shares))
            if len(steps) == 6:
                weight.fill_(float("nan"))
            return step(shares)

        served.service.engine.step = breaking  # type: ignore[method-assign]
        try:
            with pytest.warns(UserWarning, match="a draft came to NaN or infinity"):
                threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        finally:
            weight.copy_(before)
        assert found == {prompt: tiny.text(prompt, 60, ignore_stop=True) for prompt in prompts}
        broken = served.service.engine.broken_drafts
        assert broken > 0 and f'dspark:broken_drafts_total{{engine="0",model_name="tiny"}} {float(broken)}' in (
            served.service.metrics.text().decode()
        )
        assert httpx.get(served.url + "/health").status_code == 200
        answer = served.post(TEXT, body | {"prompt": "well again", "speculative": {"mode": "fixed4", "summary": True}})
        assert answer.json()["dspark"]["summary"]["accepted"] > 0
        assert served.service.engine.broken_drafts == broken
        served.idle()


def test_an_end_with_grace_and_one_without(serve: Serve, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    slowly(monkeypatch, 0.005)
    short = LONG | {"max_tokens": 20, "stream": True}
    for grace, finishes in ((20.0, True), (0.05, False)):
        body = short if finishes else LONG | {"stream": True}
        with serve("off") as served, httpx.stream("POST", served.url + TEXT, json=body, timeout=30) as stream:
            until(lambda served=served: served.state()["running"] == 1)  # type: ignore[misc]
            served.service.worker.drain(grace)
            refused = served.post(TEXT, LONG)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            said = events(stream)
            assert said[-1] == "[DONE]"
            last = json.loads(said[-2])
            if finishes:
                assert last["choices"][0]["finish_reason"] == "length"
            else:
                assert last["error"]["code"] == "shutting_down"


def test_nothing_that_is_asked_comes_to_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve("off", key="the-key") as served:
        headers = {"Authorization": "Bearer the-key"}
        secret = "MY-SECRET-PROMPT"
        assert served.post(TEXT, {"prompt": secret, "max_tokens": 3}, headers=headers).status_code == 200
        for wrong in (
            {"prompt": secret, "temperature": secret},
            {"prompt": secret, secret: 1},
            {"prompt": [secret, 1]},
        ):
            assert served.post(TEXT, wrong, headers=headers).status_code == 400
    mine = [each for each in caplog.records if not each.name.startswith(("httpx", "httpcore", "hpack"))]
    written = "".join(each.getMessage() for each in mine) + "".join(capfd.readouterr())
    assert secret not in written
    assert "the-key" not in written
