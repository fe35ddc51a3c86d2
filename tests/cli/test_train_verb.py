"""From prompts to a drafter that decodes, through the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dspark.data.archive import read_answers
from tiny_pair import Cli

RECIPE = """
target: {target}
data: {{responses: [answers.xz], held_out_percent: 50, max_tokens: 64}}
drafter: {{layers: 1, draft_vocab_size: 0, {drafter}}}
loss: {{{loss}}}
trainer: {{steps: 2, sequences: 2, anchors: 4, validate_every: 2, save_every: 1}}
"""
DRAFTERS = {
    "dspark": ("block_size: 3, markov_rank: 4, target_layer_ids: [0, 2], mask_token_id: 0", ""),
    "dflash": (
        "block_size: 3, markov_rank: 0, confidence_head: false, target_layer_ids: [0, 2], mask_token_id: 0",
        "hard_ce: 1.0, soft_ce: 0.0, l1: 0.0",
    ),
    "eagle3": ("kind: eagle3, block_size: 3, target_layer_ids: [0, 2]", "soft_ce: 1, l1: 0, position_weights: steps"),
    "mtp": ("kind: mtp, block_size: 1, target_layer_ids: [3]", "soft_ce: 1, l1: 0, position_weights: steps"),
}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_answers_training_and_decoding_follow_each_other(
    cli: Cli, tiny_target: Path, prompts_file: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    prompts = prompts_file("p.jsonl", *(f"question {i}" for i in range(12)))
    line = ["data", "regenerate", "--prompts", prompts, "--out", "responses.jsonl", "--target", tiny_target]
    assert cli(*line, "--max-tokens", 24).code == 0
    done = cli("data", "pack", "--responses", "responses.jsonl", "responses.jsonl", "--out", "answers.xz")
    assert done.code == 0 and f"{(tmp_path / 'answers.xz').stat().st_size / 1e3:.1f} kB" in done.out
    wrong = cli("data", "pack", "--responses", "responses.jsonl", "--out", "answers.zip")
    assert wrong.code == 2 and "ends in .xz" in wrong.err
    packed, plain = (list(read_answers(tmp_path / name)) for name in ("answers.xz", "responses.jsonl"))
    assert [replace(each, messages=[]) for each in plain] == packed
    recipe = tmp_path / "tiny.yaml"
    drafter, loss = DRAFTERS[kind]
    recipe.write_text(RECIPE.format(target=tiny_target, drafter=drafter, loss=loss), encoding="utf-8")
    line = ["train", "--recipe", recipe, "--run", "run", "--json", "train.json"]
    outcome = cli(*line)
    assert outcome.code == 0, outcome.err
    figures = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert figures["steps"] == 2
    assert figures["tokens"] > 0
    assert figures["peak_memory_bytes"] > 0
    assert len(figures["validation"]["conditional_acceptance"]) == (1 if kind == "mtp" else 3)
    assert {"tokens_per_second", "seconds"} <= figures.keys()
    assert "warning" not in outcome.err
    again = cli(*line)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    assert "--resume" in again.err
    line = ["generate", "abc", "--target", tiny_target, "--max-tokens", 20, "--dtype", "float32"]
    drafted = cli(*line, "--drafter", "run/drafter")
    assert drafted.code == 0, drafted.err
    assert drafted.out == cli(*line, "--plain").out


def test_answers_of_another_model_are_pointed_out(cli: Cli, tiny_target: Path, tmp_path: Path) -> None:
    row = {"turn": 0, "messages": [], "prompt_ids": [7, 8], "output_ids": [9, 10, 11, 12], "finish_reason": "length"}
    rows = [row | {"id": str(i), "model": "somebody-else", "sampling": {}} for i in range(12)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    assert cli("data", "pack", "--responses", "responses.jsonl", "responses.jsonl", "--out", "answers.xz").code == 0
    wrong = cli("data", "pack", "--responses", "responses.jsonl", "--out", "answers.zip")
    assert wrong.code == 2 and "ends in .xz" in wrong.err
    packed, plain = (list(read_answers(tmp_path / name)) for name in ("answers.xz", "responses.jsonl"))
    assert [replace(each, messages=[]) for each in plain] == packed
    recipe = tmp_path / "tiny.yaml"
    drafter, loss = DRAFTERS["dspark"]
    recipe.write_text(RECIPE.format(target=tiny_target, drafter=drafter, loss=loss), encoding="utf-8")
    outcome = cli("train", "--recipe", recipe, "--run", "run", "--seed", 3, "--dtype", "float32", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "warning: some answers are those of somebody-else, not of tiny-target" in outcome.err
    resolved = (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert "seed: 3" in resolved and "dtype: float32" in resolved and "device: cpu" in resolved
