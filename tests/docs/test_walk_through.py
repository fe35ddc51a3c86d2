"""The walk-throughs, as they are written, on a tiny pair: only sizes are made smaller."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.foundation.settings import load_settings
from dspark.training.curves import Curves
from dspark.training.recipe import Recipe
from pages import blocks, commands
from tiny_pair import Cli

PromptsFile = Callable[..., Path]
FP32 = ["--dtype", "float32", "--device", "cpu"]
SMALL: dict[str, list[str]] = {
    "regenerate": ["--max-tokens", "24", *FP32],
    "pack": [],
    "train": [
        "--set",
        "data={responses: [responses.jsonl], held_out_percent: 50, max_tokens: 64}",
        "drafter={layers: 1, block_size: 3, markov_rank: 4, draft_vocab_size: 0, target_layer_ids: [0, 2],"
        " mask_token_id: 0}",
        "trainer={steps: 2, sequences: 2, anchors: 4, validate_every: 2, save_every: 1}",
        *FP32,
    ],
    "calibrate": ["--max-tokens", "40", "--slots", "4", *FP32],
    "profile": ["--requests", "4", "--context", "32", *FP32],
    "bench": [
        *("--concurrency", "1,3", "--modes", "off,fixed2,ngram,adaptive"),
        *("--repeats", "2", "--limit", "4", "--max-tokens", "24"),
        *FP32,
    ],
    "eval": ["--limit", "2", "--max-tokens", "24", *FP32],
    "report": [],
}


@pytest.fixture
def walk(cli: Cli, tiny_target: Path, prompts_file: PromptsFile) -> Callable[[str], list[str]]:
    """Run every command of a page but those that need a server, and return the verbs."""
    for name in ("prompts", "calibration", "evaluation"):
        prompts_file(f"{name}.jsonl", *(f"{name} {i}" for i in range(10)))

    def run(document: str) -> list[str]:
        verbs = []
        for line in commands(document):
            if "--endpoint" in line:
                continue
            verbs.append(line[1] if line[0] == "data" else line[0])
            words = [str(tiny_target) if word == "MODEL" else word for word in line]
            done = cli(*words, *SMALL[verbs[-1]])
            assert done.code == 0, (line, done.err)
        return verbs

    return run


def test_a_drafter_is_trained_as_the_page_says(
    walk: Callable[[str], list[str]], tiny_target: Path, tmp_path: Path
) -> None:
    (recipe,) = blocks("docs/train.md", "yaml")
    (tmp_path / "drafter.yaml").write_text(recipe.replace("MODEL", str(tiny_target)), encoding="utf-8")
    assert load_settings(Recipe, tmp_path / "drafter.yaml").drafter.block_size == 7
    verbs = walk("docs/train.md")
    assert verbs == ["regenerate", "pack", "train", "train", "train", "calibrate", "calibrate", "eval", "eval"]
    assert (tmp_path / "responses.xz").stat().st_size
    run = {each.name for each in (tmp_path / "my-run").iterdir()}
    assert run >= {"recipe.yaml", "log.jsonl", "state.pt", "drafter"}
    drafter = {each.name for each in (tmp_path / "my-run" / "drafter").iterdir()}
    assert drafter >= {"config.json", "model.safetensors", "manifest.json", "calibration.json"}


def test_a_pair_is_measured_as_the_page_says(
    walk: Callable[[str], list[str]], tiny_drafter: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_drafter, tmp_path / "my-run" / "drafter")
    assert walk("docs/calibrate.md") == ["calibrate", "calibrate", "profile", "bench", "eval", "eval"]
    left = ["plots/reliability.svg", "plots/thresholds.svg", "costs.json", "costs.svg"]
    left += ["bench/runs.jsonl", "bench/frontier.svg", "bench/load.svg"]
    assert not [name for name in left if not (tmp_path / name).stat().st_size]


def test_what_was_measured_becomes_a_page_as_the_page_says(
    walk: Callable[[str], list[str]], tiny_drafter: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_drafter, tmp_path / "my-run" / "drafter")
    with Curves(tmp_path / "my-run" / "log.jsonl", 0, 20) as curves:
        curves.training(10, 1.5, {"loss": 2.0, "l1": 0.8})
    assert walk("docs/report.md") == ["eval", "calibrate", "bench", "profile", "report"]
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    titles = ["Drafters on prompts", "Confidence", "Under load", "What steps cost", "Training", "Records"]
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    absent = page.partition("<h2>Not on this page</h2>")[2].partition("</ul>")[0]
    assert absent.count("<li>") == 1 and "compare_drafters" in absent


@pytest.mark.parametrize("document", ["docs/quick_start.md", "docs/api.md"])
def test_python_of_a_page_runs(
    document: str, tiny_target: Path, tiny_drafter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(document, "python")
    assert code.count('("smollm2-135m", "smollm2-135m")') == 1
    code = code.replace('"smollm2-135m", "smollm2-135m"', f'"{tiny_target}", "{tiny_drafter}"')
    exec(compile(code, document, "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2
