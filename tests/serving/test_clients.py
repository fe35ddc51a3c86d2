"""OpenAI's own client, unchanged, against the server: what it reads is the target's own text."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from dspark.serving.answers import Piece
from dspark.serving.protocol import CompletionRequest
from dspark.serving.shapes import ChatShape, CompletionShape
from dspark.serving.streams import Streamed
from tiny_server import Served, Tiny

MODES: list[Any] = [None, "off", "fixed3", "adaptive", {"mode": "fixed", "draft_tokens": 2, "summary": True}]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_chat_is_the_targets_own_text(server: Served, tiny: Tiny, mode: Any) -> None:
    answer = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=40,
        temperature=0,
        extra_body={"speculative": mode},
    )
    assert answer.choices[0].message.content == tiny.chat("hello", 40)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    if isinstance(mode, dict):
        summary = answer.model_extra["dspark"]["summary"]  # type: ignore[index]
        assert summary["mode"] == "fixed2"
        assert summary["drafted"] > 0
        assert summary["accepted"] > 0
        assert len(summary["verify_lengths"]) == summary["rounds"]
        assert summary["tokens"] == answer.usage.completion_tokens


def test_a_stream_joined_is_the_whole(server: Served, tiny: Tiny) -> None:
    for prompt in ("ab", "é€😀", "The end"):
        stream = server.client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=50,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == tiny.text(prompt, 50)
        assert not chunks[-1].choices
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(tiny.ids(tiny.target.chat.encode(prompt), 50))
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)


def test_a_trace_tells_what_was_drafted_and_what_became_of_it(server: Served, tiny: Tiny) -> None:
    stream = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "trace me"}],
        max_tokens=40,
        temperature=0,
        stream=True,
        extra_body={"speculative": {"mode": "fixed", "draft_tokens": 4, "trace": True, "summary": True}},
    )
    text, rounds, summary = "", [], None
    for chunk in stream:
        told = (chunk.model_extra or {}).get("dspark", {})
        text += chunk.choices[0].delta.content or ""
        rounds += told.get("rounds", [])
        summary = told.get("summary", summary)
    assert text == tiny.chat("trace me", 40)
    assert "".join(piece for each in rounds for piece in each["tokens"]) == text
    assert summary is not None
    assert sum(each["accepted"] for each in rounds) == summary["accepted"] > 0
    assert sum(len(each["drafts"]) for each in rounds) == summary["verified"] > summary["accepted"]
    assert {each["source"] for each in rounds} == {"drafter", None}


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
@pytest.mark.parametrize("shape", [ChatShape, CompletionShape])
def test_a_chunk_of_text_alone_is_the_chunk_that_would_have_been_encoded(texts: list[str], shape: Any) -> None:
    asked = CompletionRequest(prompt="x", n=2, stream=True, stream_options={"include_usage": True})
    job: Any = SimpleNamespace(id='cmpl-"\\u0000"', created=1, asked=asked, tickets=[])
    service: Any = SimpleNamespace(model='the "\0" model\\u0000')
    streamed = Streamed(service, job, shape(job, None))
    for number, text in enumerate(texts):
        piece = Piece(number % 2, text)
        assert streamed._told(piece) == streamed._chunk([streamed._shape.part(piece)])
    assert len(streamed._around) == len({number % 2 for number, text in enumerate(texts) if text})


def test_each_of_several_answers_says_how_it_was_drafted_for(server: Served) -> None:
    body: Any = {"prompt": ["a b", "count"], "n": 2, "max_tokens": 30, "temperature": 0.8, "seed": 1}
    body |= {"ignore_eos": True}
    body |= {"speculative": {"mode": "fixed", "draft_tokens": 3, "summary": True}}
    whole = server.post("/v1/completions", body).json()
    told = [each["dspark"]["summary"] for each in whole["choices"]]
    assert whole["dspark"]["summary"] == told[0]
    assert [each["tokens"] for each in told] == [30] * 4
    assert sum(each["tokens"] for each in told) == whole["usage"]["completion_tokens"]
    assert len({tuple(each["verify_lengths"]) for each in told}) > 1, "one summary four times would do"
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=30) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    ends = [chunk for chunk in map(json.loads, lines[:-1]) if chunk["choices"][0]["finish_reason"]]
    assert all(chunk["choices"][0]["dspark"] == chunk["dspark"] for chunk in ends)
    streamed = {chunk["choices"][0]["index"]: chunk["dspark"]["summary"]["verify_lengths"] for chunk in ends}
    assert streamed == {index: each["verify_lengths"] for index, each in enumerate(told)}


def test_many_at_once_do_not_know_of_each_other(server: Served, tiny: Tiny) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:

            async def one(number: int) -> str:
                asked: Any = {"model": "tiny", "prompt": f"number {number % 5}", "max_tokens": 30, "temperature": 0}
                mode = ["off", "fixed1", "fixed4", None][number % 4]
                if number % 2:
                    text = ""
                    async for chunk in await client.completions.create(
                        **asked, stream=True, extra_body={"speculative": mode}
                    ):
                        text += chunk.choices[0].text
                    return text
                found = await client.completions.create(**asked, extra_body={"speculative": mode})
                return found.choices[0].text

            return list(await asyncio.gather(*map(one, range(20))))

    expected = [tiny.text(f"number {number}", 30) for number in range(5)]
    assert asyncio.run(ask()) == [expected[number % 5] for number in range(20)]


def test_several_answers_to_several_prompts(server: Served, tiny: Tiny) -> None:
    asked: Any = {"model": "tiny", "prompt": ["one", "two"], "n": 2, "max_tokens": 12, "seed": 5, "temperature": 1.0}
    first, again = (server.client.completions.create(**asked, extra_body={"speculative": "off"}) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) > 2
    ids = [tiny.target.chat.encode(prompt) for prompt in ("one", "two")]
    by_ids = server.client.completions.create(**asked | {"prompt": ids}, extra_body={"speculative": "off"})
    assert [choice.text for choice in by_ids.choices] == texts
    assert first.usage is not None
    assert first.usage.prompt_tokens == sum(map(len, ids))


def test_logprobs_of_both_kinds(server: Served) -> None:
    chat = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    told = chat.choices[0].logprobs
    assert told is not None and told.content is not None and chat.usage is not None
    assert len(told.content) == chat.usage.completion_tokens
    for each in told.content:
        assert each.logprob == max(other.logprob for other in each.top_logprobs) <= 0
        assert len(each.top_logprobs) == 3
    text = server.client.completions.create(model="tiny", prompt="x", max_tokens=6, temperature=0, logprobs=2)
    found = text.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    assert found.text_offset is not None and len(found.text_offset) == len(found.tokens) == len(found.token_logprobs)


def test_stop_texts_end_an_answer_in_front_of_them(server: Served, tiny: Tiny) -> None:
    whole = tiny.text("stop here", 40)
    at = next(at for at in range(5, len(whole)) if "\ufffd" not in whole[at : at + 3])
    for size in (1, 2, 3):
        stop = whole[at : at + size]
        expected = whole[: whole.index(stop)]
        asked: Any = {"model": "tiny", "prompt": "stop here", "max_tokens": 40, "temperature": 0, "stop": [stop, "Ω"]}
        for mode in ("off", "fixed4"):
            body = asked | {"extra_body": {"speculative": mode}}
            answer = server.client.completions.create(**body).choices[0]
            assert (answer.text, answer.finish_reason) == (expected, "stop")
            pieces = [chunk.choices[0].text for chunk in server.client.completions.create(**body, stream=True)]
            assert "".join(pieces) == expected


def test_ids_come_back_for_those_who_ask(server: Served, tiny: Tiny) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 9, "temperature": 0, "return_token_ids": True}
    found = server.post("/v1/completions", body).json()
    assert found["choices"][0]["token_ids"] == tiny.ids([5, 6, 7], 9)
    assert found["prompt_token_ids"] == [5, 6, 7]


def test_conversations_go_through_the_template(server: Served, tiny: Tiny) -> None:
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "d"},
    ]
    rendered = [("system", "be brief"), ("user", "ab"), ("assistant", "c"), ("user", "d")]
    ids = tiny.target.chat.prompt_ids([{"role": role, "content": content} for role, content in rendered])
    assert server.post("/tokenize", {"messages": turns}).json()["tokens"] == ids
    answer = server.post("/v1/chat/completions", {"messages": turns, "max_tokens": 12, "temperature": 0}).json()
    assert answer["choices"][0]["message"]["content"] == tiny.target.chat.decode(tiny.ids(ids, 12))


def test_errors_are_structured(server: Served) -> None:
    client = server.client
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x", echo=True)
    assert (refused.value.param, refused.value.code) == ("echo", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 400)
    assert long.value.code == "context_length_exceeded"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_tokens_there_and_back(server: Served, tiny: Tiny) -> None:
    text = "ab é€😀"
    ids = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert ids == tiny.target.chat.encode(text)
    assert server.post("/detokenize", {"tokens": ids}).json()["prompt"] == text
