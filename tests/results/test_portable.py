"""What may be published of a record."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from portable import portable, provenance


def test_paths_become_names_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "p.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    record = {
        "drafter": str(tmp_path / "my-run" / "drafter"),
        "files": {"p": ["near/p.jsonl", "/not/there/q.jsonl"]},
        "target": "owner/model",
        "machine": {"processor": "AMD EPYC 7/8"},
        "identical_gaps": [0.1],
    }
    assert portable(record) == {
        "drafter": "drafter",
        "files": {"p": ["p.jsonl", "q.jsonl"]},
        "target": "owner/model",
        "machine": {"processor": "AMD EPYC 7/8"},
    }


def test_digits_are_those_of_a_measurement() -> None:
    assert portable({"a": [1.23456789, 123456789, None, True, 1e-9]}) == {"a": [1.23457, 123456789, None, True, 1e-9]}


def test_how_a_record_was_made(tmp_path: Path) -> None:
    made = provenance(["eval", "--prompts", str(tmp_path / "a.jsonl"), "--limit", "2"], 1.234, 0.06, tmp_path)
    assert made["command"] == "dspark eval --prompts a.jsonl --limit 2"
    assert (made["minutes"], made["load"], made["commit"]) == (1.2, 0.1, None)
    assert len(made["date"]) == 10


def test_the_commit_of_what_measured(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit() -> str:
        found: str = provenance([], 0, 0, tmp_path)["commit"]
        return found

    record, code = tmp_path / "docs" / "results" / "records" / "eval.json", tmp_path / "code.py"
    record.parent.mkdir(parents=True)
    record.write_text("before")
    code.write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    head = git("rev-parse", "HEAD")[:12]
    assert commit() == head
    record.write_text("a later measurement")
    assert commit() == head, "what is measured first does not change the code that measures the rest"
    code.write_text("after")
    assert commit() == f"{head}-dirty"
