"""A base model, which has no chat template: refused by every verb that reads prompts, and asked raw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_pair import Cli, make_drafter, make_target, make_tokenizer

PromptsFile = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name a pair whose target has no template."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    tokenizer.chat_template = None
    target = make_target(folder / "base", tokenizer)
    return ["--target", target, "--drafter", make_drafter(folder / "drafter", target)]


def lines(prompts: Path, base: list[object], tmp_path: Path) -> dict[str, list[object]]:
    few = ["--prompts", prompts, "--max-tokens", 16, *base]
    return {
        "eval": ["eval", *few],
        "calibrate": ["calibrate", *few, "--out", tmp_path / "map.json"],
        "bench": ["bench", *few, "--concurrency", 2, "--modes", "off,fixed2", "--repeats", 1, "--limit", 2],
        "regenerate": ["data", "regenerate", *few[:-2], "--out", tmp_path / "answers.jsonl"],
    }


VERBS = ["eval", "calibrate", "bench", "regenerate"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_base_model_is_asked_raw_or_not_at_all(
    cli: Cli, base: list[object], prompts_file: PromptsFile, tmp_path: Path, verb: str
) -> None:
    line = lines(prompts_file("few.jsonl", "abc", "1+1=", "x = 2", "def f"), base, tmp_path)[verb]
    refused = cli(*line)
    assert refused.code == 2 and "no chat template" in refused.err and "--raw" in refused.err
    out = tmp_path / "out.json"
    asked = cli(*line, "--raw", "--json", out)
    assert asked.code == 0, asked.err
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures.get("raw", True)
    if verb == "eval":
        assert figures["identical"] == {"equal": 4, "total": 4, "unexplained": 0} and figures["accepted"] > 0


def test_raw_answers_follow_the_prompts_own_ids(
    cli: Cli, base: list[object], prompts_file: PromptsFile, tmp_path: Path
) -> None:
    line = lines(prompts_file("few.jsonl", "abc"), base, tmp_path)["regenerate"]
    assert cli(*line, "--raw").code == 0
    (row,) = [json.loads(text) for text in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["prompt_ids"] == make_tokenizer()("abc")["input_ids"]
