"""Regeneration as a process of its own, killed outright at random moments."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspark.data.responses import read_responses

KILLS = 10


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_repeat_nothing(tiny_target: Path, tmp_path: Path) -> None:
    turns = [[f"question {i}", "more", "and then?"][: 1 + i % 3] for i in range(240)]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "turns": some}) + "\n" for i, some in enumerate(turns)))

    def command(out: Path) -> list[str]:
        line = [sys.executable, "-c", "from dspark.cli.main import run; raise SystemExit(run())", "data", "regenerate"]
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
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        interrupted += process.wait(timeout=60) < 0
    assert interrupted == KILLS, "every kill fell into the work itself"
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    found, expected = ([((r.id, r.turn), r.output_ids) for r in read_responses(path)] for path in (killed, whole))
    assert len(expected) > 400 and len(dict(expected)) == len(expected)
    assert sorted(found) == sorted(expected)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
