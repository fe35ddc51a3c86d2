"""Regeneration, training and evaluation as processes of their own, killed outright at random moments."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.data.responses import read_responses
from dspark.foundation.records import read_jsonl
from tiny import VOCAB

KILLS = 10
RUN = [sys.executable, "-c", "from dspark.cli.main import run; raise SystemExit(run())"]
RECIPE = """
dtype: float32
data: {responses: [RESPONSES], held_out_percent: 20}
drafter: {layers: 1, block_size: 4, markov_rank: 8, draft_vocab_size: 48, target_layer_ids: [0, 1], mask_token_id: 5}
trainer:
  steps: 1200
  sequences: 4
  anchors: 4
  short_share: 0.5
  short_slots: 2
  validate_every: 40
  validation_examples: 8
  save_every: 1
  precision: float32
"""


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_repeat_nothing(tiny_target: Path, tmp_path: Path) -> None:
    turns = [[f"question {i}", "more", "and then?"][: 1 + i % 3] for i in range(400)]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "turns": some}) + "\n" for i, some in enumerate(turns)))

    def command(out: Path) -> list[str]:
        line = [*RUN, "data", "regenerate"]
        settings = ["--target", str(tiny_target), "--dtype", "float32", "--max-tokens", "24", "--slots", "2"]
        return [*line, "--prompts", str(prompts), "--out", str(out), *settings]

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=300)
    moments, interrupted = random.Random(0), 0
    for _ in range(KILLS):
        before = size(killed)
        process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while size(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.6))
        process.kill()
        interrupted += process.wait(timeout=60) < 0
    assert interrupted == KILLS, "every kill fell into the work itself"
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    found, expected = ([((r.id, r.turn), r.output_ids) for r in read_responses(path)] for path in (killed, whole))
    assert len(expected) > 400 and len(dict(expected)) == len(expected)
    assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_twenty_kills_change_neither_the_curves_nor_the_weights_of_training(tiny_target: Path, tmp_path: Path) -> None:
    draw, answers = random.Random(1), tmp_path / "answers.jsonl"
    kept = {"turn": 0, "messages": [], "finish_reason": "length", "model": tiny_target.name, "sampling": {}}
    with answers.open("w") as file:
        for number in range(60):
            prompt, output = ([draw.randrange(3, VOCAB) for _ in range(length)] for length in (6, 16 + number % 9))
            file.write(json.dumps({"id": f"q{number}", "prompt_ids": prompt, "output_ids": output, **kept}) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("RESPONSES", str(answers)))

    def command(run: Path) -> list[str]:
        resume = ["--resume"] if (run / "state.pt").exists() else []
        return [*RUN, "train", "--recipe", str(recipe), "--set", f"target={tiny_target}", "--run", str(run), *resume]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=300)
    for _ in range(20):
        before = written(killed / "state.pt")
        process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while written(killed / "state.pt") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.5))
        process.kill()
        assert process.wait(timeout=60) < 0, "every kill fell into the work itself"
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    ours, expected = (torch.load(run / "state.pt", weights_only=True) for run in (killed, whole))
    assert ours["step"] == expected["step"] == 1200
    for name, tensor in expected["drafter"].items():
        assert torch.equal(ours["drafter"][name], tensor), name
    curves = [[row | {"seconds": 0} for _, row in read_jsonl(run / "log.jsonl")] for run in (killed, whole)]
    assert len(curves[1]) == 120 + 30 and curves[0] == curves[1]


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
def test_ten_kills_leave_an_evaluation_as_if_it_never_stopped(
    tiny_target: Path, tiny_drafter: Path, tmp_path: Path
) -> None:
    turns = [[f"question {i}", "and then?"] for i in range(60)]
    rows = ({"id": f"m{i}", "turns": some} for i, some in enumerate(turns))
    (tmp_path / "mt-bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(out: Path) -> list[str]:
        pair = ["--target", str(tiny_target), "--drafter", str(tiny_drafter), "--dtype", "float32"]
        line = [*RUN, "eval", *pair, "--benchmark", "mt-bench", "--benchmark-folder", str(tmp_path)]
        return [*line, "--max-tokens", "24", "--temperature", "1", "--out", str(out), "--json", f"{out}.json"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=300)
    moments, interrupted = random.Random(2), 0
    for _ in range(KILLS):
        before = size(killed / "samples.jsonl")
        process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while size(killed / "samples.jsonl") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        interrupted += process.wait(timeout=60) < 0
    assert interrupted == KILLS, "every kill fell into the work itself"
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    ours, expected = ([timeless(row) for _, row in read_jsonl(run / "samples.jsonl")] for run in (killed, whole))
    assert len(expected) == 120 and ours == expected
    found, wanted = (json.loads(Path(f"{run}.json").read_text()) for run in (killed, whole))
    assert found["kept"] >= KILLS and wanted["kept"] == 0
    for name in ("tau", "macro_tau", "accepted", "drafted", "survival", "confidence", "repeat_share"):
        assert found[name] == wanted[name], name


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A sample without what its decodings took."""
    return row | {"runs": {way: run | {"seconds": 0} for way, run in row["runs"].items()}}
