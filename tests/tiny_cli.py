"""Fixtures: the tiny pair on the disk, and the program run in this process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_pair import Cli, Outcome, make_drafter, make_target, make_tokenizer

__all__ = ["cli", "prompts_file", "tiny", "tiny_drafter", "tiny_target"]


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("models") / "tiny-target", make_tokenizer())


@pytest.fixture(scope="session")
def tiny_drafter(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drafter(tmp_path_factory.mktemp("models") / "tiny-drafter", tiny_target)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command line; caches go to the test's own folder."""
    from dspark.cli.main import main

    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DSPARK_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with warnings.catch_warnings():
            # As in a process of its own, where warnings are shown and are no errors.
            warnings.simplefilter("default")
            code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tiny_target: Path, tiny_drafter: Path) -> list[object]:
    """The options that name the tiny pair, in fp32, where texts must be identical."""
    return ["--target", tiny_target, "--drafter", tiny_drafter, "--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def prompts_file(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *texts: str) -> Path:
        path = tmp_path / name
        rows = [{"id": f"{path.stem}-{i}", "turns": [text]} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
