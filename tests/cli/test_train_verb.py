"""From prompts to a drafter that decodes, through the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny_pair import Cli

RECIPE = """
target: {target}
data: {{responses: [responses.jsonl], held_out_percent: 50, max_tokens: 64}}
drafter: {{layers: 1, block_size: 3, markov_rank: 4, draft_vocab_size: 0, target_layer_ids: [0, 2], mask_token_id: 0}}
trainer: {{steps: 2, sequences: 2, anchors: 4, validate_every: 2, save_every: 1}}
"""


def test_answers_training_and_decoding_follow_each_other(
    cli: Cli, tiny_target: Path, prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = prompts_file("p.jsonl", *(f"question {i}" for i in range(12)))
    line = ["data", "regenerate", "--prompts", prompts, "--out", "responses.jsonl", "--target", tiny_target]
    assert cli(*line, "--max-tokens", 24).code == 0
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(target=tiny_target), encoding="utf-8")
    line = ["train", "--recipe", recipe, "--run", "run", "--json", "train.json"]
    outcome = cli(*line)
    assert outcome.code == 0, outcome.err
    figures = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert figures["steps"] == 2
    assert figures["tokens"] > 0
    assert figures["peak_memory_bytes"] > 0
    assert len(figures["validation"]["conditional_acceptance"]) == 3
    assert {"tokens_per_second", "seconds"} <= figures.keys()
    assert "warning" not in outcome.err
    again = cli(*line)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    assert "--resume" in again.err
    line = ["generate", "abc", "--target", tiny_target, "--max-tokens", 20, "--dtype", "float32"]
    drafted = cli(*line, "--drafter", "run/drafter")
    assert drafted.code == 0, drafted.err
    assert drafted.out == cli(*line, "--plain").out
