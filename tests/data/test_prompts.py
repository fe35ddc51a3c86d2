"""Prompts in every accepted form, bad rows by file and line, and the splits that keep evaluation honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspark.data.prompts import Prompt, held_out, read_in_turn, read_prompts
from dspark.data.responses import read_responses
from dspark.foundation.errors import UserError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_the_three_forms_of_a_prompt(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"id": "a", "turns": ["one", "two"]},
        {"id": 7, "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "z"}]},
    )
    first, second, third = read_prompts([path])
    assert first == Prompt("a", ("one", "two"))
    assert second == Prompt("7", ("x",))
    assert third.first_messages() == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "z"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "b"}, "line 2: a prompt row needs 'turns'"),
        ({"id": "b", "turns": []}, "line 2: a prompt needs at least one user turn"),
        ({"id": "b", "turns": ["  "]}, "line 2: a prompt needs at least one user turn"),
        ({"id": "b", "turns": [3]}, "line 2: a prompt needs at least one user turn"),
        ({"id": "b", "messages": [{"role": "user"}]}, "line 2: each entry of 'messages' needs 'role' and 'content'"),
        ({"id": "a", "turns": ["again"]}, "line 2: the id 'a' was already used at .*line 1"),
        ("{broken", "line 2: not valid JSON"),
        ("What is 2 + 2?", "expected one object {...} a line"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a", "turns": ["fine"]}, row)
    with pytest.raises(UserError, match=message):
        read_prompts([path])


def test_a_cut_takes_as_much_of_each_file_as_it_can(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.jsonl", *({"id": f"{name}{i}", "turns": ["x"]} for i in range(count)))
        for name, count in (("a", 4), ("b", 1), ("c", 3))
    ]

    def ids(limit: int | None) -> list[str]:
        return [prompt.id for prompt in read_in_turn(paths, limit)]

    assert ids(5) == ["a0", "b0", "c0", "a1", "c1"]
    assert ids(None) == ["a0", "b0", "c0", "a1", "c1", "a2", "c2", "a3"]
    with pytest.raises(UserError, match="already used"):
        read_in_turn([paths[0], paths[0]])


def test_the_development_split_is_a_fixed_share_of_ids() -> None:
    held = [i for i in range(10_000) if held_out(f"gsm8k-{i}")]
    assert 400 < len(held) < 600
    assert held == [i for i in range(10_000) if held_out(f"gsm8k-{i}")]
    assert not any(held_out(str(i), percent=0) for i in range(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_ids": None}, "output_ids must be a list of token ids"),
        ({"output_ids": []}, "output_ids must be a list of token ids"),
        ({"prompt_ids": [1, -2]}, "prompt_ids must be a list of token ids"),
        ({"finish_reason": "eos"}, "finish_reason is 'eos', expected one of stop, length"),
    ],
)
def test_a_bad_response_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {
        "id": "a",
        "turn": 0,
        "messages": [],
        "prompt_ids": [1],
        "output_ids": [2],
        "finish_reason": "stop",
        "model": "m",
        "sampling": {},
    }
    assert len(list(read_responses(write(tmp_path / "ok.jsonl", row)))) == 1
    with pytest.raises(UserError, match="line 1: " + message):
        list(read_responses(write(tmp_path / "r.jsonl", row | change)))
    del row["model"]
    with pytest.raises(UserError, match="line 1: a response row lacks model"):
        list(read_responses(write(tmp_path / "r.jsonl", row)))
