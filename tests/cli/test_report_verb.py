"""`dspark report` on records that the verbs themselves wrote, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dspark.training.curves import Curves
from tiny_pair import Cli

PromptsFile = Callable[..., Path]


def test_what_the_verbs_wrote_becomes_a_page(
    cli: Cli, tiny: list[object], prompts_file: PromptsFile, tmp_path: Path
) -> None:
    prompts, records, out = prompts_file("p.jsonl", "abc", "def f"), tmp_path / "records", tmp_path / "page"
    made = cli("eval", *tiny, "--prompts", prompts, "--max-tokens", 16, "--json", records / "eval.json")
    assert made.code == 0, made.err
    with Curves(tmp_path / "my-run" / "log.jsonl", 0, 20) as curves:
        curves.training(10, 1.5, {"loss": 2.0, "l1": 0.8})
        curves.validation(20, {"tau": 1.8, "greedy_tau": 2.0, "conditional_acceptance": [0.5, 0.4]})
    line = ["report", records, tmp_path / "my-run", "--out", out, "--json", out / "report.json"]
    found = cli(*line)
    assert found.code == 0, found.err
    assert "evaluation: records/eval.json" in found.out and "training: my-run/log.jsonl" in found.out
    assert "dspark bench --prompts FILE --json bench.json" in found.out
    told = json.loads((out / "report.json").read_text())
    assert [each["id"] for each in told["figures"]] == ["evaluation", "evaluation-acceptance", "training"]
    figures = json.loads((records / "eval.json").read_text())
    table = told["figures"][0]["data"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    (whole,) = (row for row in rows if row["prompts of"] == "all" and row["drafter"] != "prompt lookup")
    assert whole["tau"]["value"] == figures["tau"] and whole["speed-up"]["value"] == figures["speedup"]
    assert whole["identical"] == "2/2"
    page = (out / "report.html").read_bytes()
    assert f"{figures['tau']:.2f}".encode() in page and str(tmp_path).encode() not in page
    assert cli(*line).code == 0
    assert (out / "report.html").read_bytes() == page


def test_mistakes_are_told_in_a_line_and_leave_no_page(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "taken").write_text("")
    for line, complaint in (
        (["report", "--out", "page"], "Missing argument"),
        (["report", "other.json"], "--out"),
        (["report", "other.json", "--out", "page"], "other.json: holds nothing, which is no record of a verb"),
        (["report", "none", "--out", "page"], "none: is not there"),
        (["report", "other.json", "--out", "taken"], "--out"),
    ):
        found = cli(*line)
        assert found.code == 2 and complaint in found.err and len(found.err.splitlines()) == 1, found.err
    assert not (tmp_path / "page").exists()


def test_a_page_needs_no_model(cli: Cli, tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "log.jsonl").write_text('{"step": 10, "seconds": 1.0, "loss": 2.0}\n')
    code = (
        "import sys; from dspark.cli.main import main; code = main(['report', 'log.jsonl', '--out', 'page']);"
        " sys.exit(code or any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "page" / "report.html").stat().st_size
