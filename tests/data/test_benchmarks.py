"""Benchmarks by name: how each question is put, where its rows come from, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from dspark.data.benchmarks import ALL, BENCHMARKS, DOMAINS, named_benchmarks, read_benchmark
from dspark.data.hub import Source
from dspark.foundation.errors import UserError

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
CODER = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a"
    " correct Python program that matches the specification and passes all tests. You will NOT return anything except"
    " for the program\n\n### Question:\nAdd two numbers.\n\n"
)
ANSWER = "\n```\n\n### Answer: (use the provided format with backticks)"

# A row as its source has it (and fields that nobody reads), and what a user says.
ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gsm8k": ({"question": "1+1=?", "answer": "#### 2"}, ["1+1=?" + BOXED]),
    "math500": ({"problem": "Find $x$.", "unique_id": "test/1", "level": 2}, ["Find $x$." + BOXED]),
    "aime25": ({"problem_idx": 1, "problem": "Find {n}.", "answer": 70}, ["Find {n}." + BOXED]),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass"},
        [
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            "```python\ndef f():\n\n```"
        ],
    ),
    "mbpp": ({"task_id": 11, "prompt": "Write a python function.", "code": "x"}, ["Write a python function."]),
    "livecodebench": (
        {"question_content": "Add two numbers.", "starter_code": "class Solution:\n    ...", "public_test_cases": "[]"},
        [CODER + "### Format: Use the following code structure:\n```python\nclass Solution:\n    ..." + ANSWER],
    ),
    "mt-bench": ({"prompt": ["Write.", "Rewrite."], "prompt_id": 81, "category": "writing"}, ["Write.", "Rewrite."]),
    "alpaca": ({"instruction": "Name a tree.", "output": "Oak", "dataset": "helpful_base"}, ["Name a tree."]),
    "arena-hard-v2": ({"uid": "0a", "category": "hard_prompt", "prompt": "Write zig."}, ["Write zig."]),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_nine_of_the_paper_in_its_three_domains() -> None:
    assert list(BENCHMARKS) == list(ROWS)
    assert {len(names) for names in DOMAINS.values()} == {3}
    assert [name for names in DOMAINS.values() for name in names] == list(BENCHMARKS)


@pytest.mark.parametrize("name", ROWS)
def test_each_question_is_put_as_the_published_evaluation_puts_it(name: str, tmp_path: Path) -> None:
    row, turns = ROWS[name]
    write(tmp_path / f"{name}.jsonl", row, {"id": "of-old", "turns": ["as it is"]})
    first, second = read_benchmark(BENCHMARKS[name], tmp_path)
    assert (first.id, list(first.turns)) == (f"{name}-0", turns)
    assert (second.id, second.turns) == ("of-old", ("as it is",)), "a prompts file is taken as it is"


def test_a_program_without_starter_code_starts_from_nothing(tmp_path: Path) -> None:
    rows = [
        {"question_content": "Add two numbers."} | more for more in ({}, {"starter_code": ""}, {"starter_code": None})
    ]
    write(tmp_path / "livecodebench.jsonl", *rows)
    expected = CODER + "### Format: Write your code in the following format:\n```python\n# YOUR CODE HERE" + ANSWER
    prompts = read_benchmark(BENCHMARKS["livecodebench"], tmp_path)
    assert [prompt.turns for prompt in prompts] == [(expected,)] * 3


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_rows_of_a_data_set_are_asked_once_and_kept_as_prompts(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, turns = ROWS[name]
    stored, rows = tmp_path / f"rows.{form}", Dataset.from_list([row] * 3)
    assert (rows.to_json if form == "json" else rows.to_parquet)(stored) > 0
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    here = replace(BENCHMARKS[name], source=Source(form, split="test", files=(str(stored),)))
    prompts = read_benchmark(here)
    assert [prompt.id for prompt in prompts] == [f"{name}-{i}" for i in range(3)]
    assert all(list(prompt.turns) == turns for prompt in prompts)
    stored.unlink()
    assert read_benchmark(here) == prompts, "the cache answers"
    kept = [json.loads(line) for line in (tmp_path / "cache" / "benchmarks" / f"{name}.jsonl").open()]
    assert kept == [{"id": prompt.id, "turns": list(prompt.turns)} for prompt in prompts]


def test_several_files_of_a_data_set_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    paths = [write(tmp_path / f"{i}.jsonl", {"instruction": f"{i}", "extra": i}) for i in range(3)]
    here = replace(BENCHMARKS["alpaca"], source=Source("json", files=tuple(map(str, paths))))
    assert [(prompt.id, prompt.turns) for prompt in read_benchmark(here)] == [
        (f"alpaca-{i}", (f"{i}",)) for i in range(3)
    ]


def test_a_source_that_fails_or_has_changed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    gsm8k = BENCHMARKS["gsm8k"]
    with pytest.raises(UserError, match="openai/gsm8k can't be read from the hub .*--benchmark-folder"):
        read_benchmark(gsm8k)
    path = write(tmp_path / "rows.jsonl", {"question": "x"}, {"question": None}, {"question": "y"})
    here = replace(gsm8k, source=Source("json", files=(str(path),)))
    with pytest.raises(
        UserError, match="row 1: a row of gsm8k needs 'turns', or 'question' as .* has it; found 'question'"
    ):
        read_benchmark(here)
    with pytest.raises(UserError, match="can't be read from the hub"):
        read_benchmark(replace(gsm8k, source=Source("json", files=(str(tmp_path / "absent.jsonl"),))))
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape("pip install 'dspark[benchmarks]'")):
        read_benchmark(BENCHMARKS["gsm8k"])


def test_names_of_benchmarks_domains_and_all() -> None:
    def names(*asked: str) -> list[str]:
        return [each.name for each in named_benchmarks(asked)]

    assert names("mt-bench", "gsm8k") == ["mt-bench", "gsm8k"]
    assert names("mbpp", "code", "mbpp") == ["mbpp", "humaneval", "livecodebench"]
    assert names(ALL) == list(BENCHMARKS)
    assert names("math", "code", "chat") == list(BENCHMARKS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "line 2: a row of gsm8k needs 'turns', or 'question' as openai/gsm8k has it; found 'prompt'"),
        ({"question": ""}, "line 2: a row of gsm8k needs 'turns', or 'question'"),
        ({}, "line 2: a row of gsm8k needs .* found nothing"),
        ({"turns": []}, "line 2: a prompt needs at least one user turn"),
        ({"id": "gsm8k-0", "turns": ["x"]}, "line 2: the id 'gsm8k-0' was already used at .*line 1"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", {"question": "fine"}, row)
    with pytest.raises(UserError, match=message):
        read_benchmark(BENCHMARKS["gsm8k"], tmp_path)


def test_turns_that_are_a_text_are_not_spelt_out_as_turns(tmp_path: Path) -> None:
    write(tmp_path / "mt-bench.jsonl", {"prompt": "one text"})
    with pytest.raises(UserError, match="line 1: a prompt needs at least one user turn"):
        read_benchmark(BENCHMARKS["mt-bench"], tmp_path)


def test_names_and_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gsm8' is not known; did you mean 'gsm8k'"):
        named_benchmarks(["gsm8"])
    with pytest.raises(
        UserError, match="'zzz' is not known; There are gsm8k, .*, arena-hard-v2, and math, code, chat, all"
    ):
        named_benchmarks(["math", "zzz"])
    with pytest.raises(UserError, match="absent is no folder; expected one with gsm8k.jsonl in it"):
        read_benchmark(BENCHMARKS["gsm8k"], tmp_path / "absent")
    with pytest.raises(UserError, match="has no gsm8k.jsonl; found no JSONL file"):
        read_benchmark(BENCHMARKS["gsm8k"], tmp_path)
    write(tmp_path / "mbpp.jsonl", {"prompt": "x"})
    with pytest.raises(UserError, match="has no gsm8k.jsonl; found mbpp.jsonl"):
        read_benchmark(BENCHMARKS["gsm8k"], tmp_path)
