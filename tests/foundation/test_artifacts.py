"""Files and folders are complete or absent, whatever fails and whenever."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dspark.foundation import artifacts
from dspark.foundation.artifacts import (
    folder_atomic,
    read_json,
    recover_folder,
    sha256_file,
    write_atomic,
    write_json,
)
from dspark.foundation.errors import UserError


def test_json_comes_back_and_stays_json_for_strict_readers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "figures.json"
    write_json(path, {"tau": 3.5, "auc": [float("nan"), 0.5], "speed": float("inf"), "text": "é"})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert values == read_json(path) == {"tau": 3.5, "auc": [None, 0.5], "speed": None, "text": "é"}


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe"])
def test_json_that_is_none_is_a_users_error_naming_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_json(path)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.write_text("old")
    seen: list[str] = []

    def interrupted(temporary: Path) -> None:
        seen.append(temporary.suffix)
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, interrupted)
    assert seen == [".npz"]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_a_full_disk_is_a_users_error_that_names_file_and_free_space(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_text("old")

    def full(temporary: Path) -> None:
        temporary.write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"weights\.bin.*free space there: [\d.]+ MB"):
        write_atomic(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        write_atomic(tmp_path / "x", lambda _: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # The first example of FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected
    with pytest.raises(UserError, match="missing"):
        sha256_file(tmp_path / "missing")


def _fill(folder: Path, text: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_text(text)
    (folder / "manifest.json").write_text("{}")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "drafter"
    for text in ("first", "second"):
        with folder_atomic(path) as folder:
            _fill(folder, text)
            assert folder.parent == tmp_path
        assert (path / "deep" / "weights").read_text() == text
    with pytest.raises(RuntimeError, match="half-way"), folder_atomic(path) as folder:
        (folder / "manifest.json").write_text("third")
        raise RuntimeError("half-way")
    assert (path / "deep" / "weights").read_text() == "second"
    assert os.listdir(tmp_path) == ["drafter"]


def test_a_failing_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "drafter"
    with folder_atomic(path) as folder:
        _fill(folder, "old")
    rename, calls = os.rename, []

    def flaky(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:  # 1: refused, the folder is not empty; 2: the old one moves aside; 3: the new one moves in
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    monkeypatch.setattr(artifacts.os, "rename", flaky)
    with pytest.raises(OSError, match="input/output"), folder_atomic(path) as folder:
        _fill(folder, "new")
    assert len(calls) == 4
    assert (path / "deep" / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["drafter"]


def test_a_kill_between_the_two_renames_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with folder_atomic(folder, marker=None) as new:
        (new / "version").write_text("1")
    rename, calls = os.rename, []

    def killed(source: object, to: object) -> None:
        calls.append(to)
        if len(calls) >= 3:  # the new folder can't come in, and nobody is left to put the old one back
            raise KeyboardInterrupt
        rename(source, to)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt), folder_atomic(folder, marker=None) as new:
            (new / "version").write_text("2")
    assert not folder.exists()
    recover_folder(folder)
    assert (folder / "version").read_text() == "1"
    (tmp_path / ".run.0123abcd.old").mkdir()  # a kill just after the second rename
    with folder_atomic(folder, marker=None) as new:
        (new / "version").write_text("3")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (folder / "version").read_text() == "3"


def test_a_symbolic_link_is_followed_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json") == {"a": 1}


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("letters", "file"):
        with pytest.raises(UserError, match=name), folder_atomic(tmp_path / name):
            pytest.fail("the body must not run")
    with folder_atomic(tmp_path / "letters", marker="dear.txt") as folder:
        (folder / "dear.txt").write_text("answer")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "answer"


def test_a_kill_while_writing_leaves_the_old_version(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    script = """
        import os, signal, sys
        from pathlib import Path
        from dspark.foundation.artifacts import write_atomic
        def half(temporary):
            temporary.write_text('{"step": ')
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(Path(sys.argv[1]), half)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert result.returncode == -9
    assert read_json(path) == {"step": 1}
