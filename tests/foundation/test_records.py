"""Rows survive kills, full disks and second writers; broken rows are named by file and line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.foundation import records
from dspark.foundation.errors import UserError
from dspark.foundation.records import JsonlWriter, read_jsonl

ROWS = st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=8), max_size=3), max_size=5)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


@given(rows=ROWS, data=st.data())
def test_after_a_kill_at_any_byte_whole_rows_are_left_and_writing_goes_on(rows: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with JsonlWriter(path) as writer:
            writer.append(rows)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        with JsonlWriter(path) as writer:
            writer.append([{"last": 1}])
        # A row counts from its closing brace on, its newline or not.
        ends = [
            len("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows[:i]).encode()) - 1
            for i in range(1, len(rows) + 1)
        ]
        kept = sum(end <= cut for end in ends)
        assert _rows(path) == [*rows[:kept], {"last": 1}]


def test_a_real_kill_between_two_appends_loses_nothing_that_append_returned_from(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    script = """
        import os, signal, sys
        from pathlib import Path
        from dspark.foundation import records
        writer = records.JsonlWriter(Path(sys.argv[1]))
        writer.append([{"n": n} for n in range(100)])
        def half(descriptor, data):
            os.write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        records.write_all = half
        writer.append([{"n": n} for n in range(100, 201)])
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert result.returncode == -9
    with pytest.raises(UserError, match=r"rows\.jsonl, line \d+"):
        _rows(path)  # torn as the kill left it
    JsonlWriter(path).close()
    found = [row["n"] for row in _rows(path)]
    assert found == list(range(len(found)))
    assert 100 <= len(found) < 201


@pytest.mark.parametrize("size", [10, records._CHUNK - 1, records._CHUNK, 3 * records._CHUNK])
def test_a_torn_line_of_any_length_is_cut(tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b'{"text": "' + b"x" * size)
    JsonlWriter(path).close()
    assert path.read_bytes() == b'{"n": 1}\n'


@pytest.mark.parametrize("content", [b'[{"n": 1}]', b"a poem", b'{"n": 1}\n[2]', b'{\n  "n": 1\n}'])
def test_a_file_that_is_not_ours_is_neither_cut_nor_written(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not end like a file of JSON rows"):
        JsonlWriter(path)
    assert path.read_bytes() == content


def test_a_place_that_is_no_folder_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be opened for writing"):
        JsonlWriter(tmp_path / "file" / "rows.jsonl")


def test_append_is_one_write_and_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.write, os.fsync
    with JsonlWriter(tmp_path / "rows.jsonl") as writer:
        monkeypatch.setattr(records.os, "write", lambda fd, data: calls.append("write") or write(fd, data))
        monkeypatch.setattr(records.os, "fsync", lambda fd: calls.append("fsync") or sync(fd))
        writer.append([{"n": n} for n in range(1000)])
        writer.append([])
    assert calls == ["write", "fsync"]


def test_a_full_disk_takes_back_the_rows_of_that_call_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with JsonlWriter(path) as writer:
        writer.append([{"n": 1}, {"n": 2}])
        with monkeypatch.context() as patch:
            patch.setattr(records, "write_all", full)
            with pytest.raises(UserError, match=r"rows\.jsonl.*free space there: [\d.]+ MB"):
                writer.append([{"n": 3}])
        assert _rows(path) == [{"n": 1}, {"n": 2}]
        writer.append([{"n": 4}])  # somebody freed some space
    assert _rows(path) == [{"n": 1}, {"n": 2}, {"n": 4}]


def test_a_real_limit_of_the_system_is_met_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    script = """
        import resource, signal, sys
        from pathlib import Path
        from dspark.foundation.errors import UserError
        from dspark.foundation.records import JsonlWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        writer = JsonlWriter(Path(sys.argv[1]))
        writer.append([{"n": n} for n in range(50)])
        try:
            writer.append([{"text": "x" * 1000}])
        except UserError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "rows.jsonl" in result.stdout
    assert "free space" in result.stdout
    assert [row["n"] for row in _rows(path)] == list(range(50))


def test_a_second_writer_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as first, pytest.raises(UserError, match="another writer"):
        first.append([{"n": 1}])
        JsonlWriter(path)
    with JsonlWriter(path) as second:
        second.append([{"n": 2}])
    assert _rows(path) == [{"n": 1}, {"n": 2}]


def test_lines_are_counted_from_one_and_blank_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"id": "a"}\n\n{"id": "b"}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(2, {"id": "a"}), (4, {"id": "b"})]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (None, "can't be read"),
        (b"", "no rows"),
        (b"\n \n", "no rows"),
        (b'{"id": 1}\n{"id": \n', "line 2"),
        (b'{"id": 1}\n[1]\n', "line 2.*list"),
        (b'{"id": 1}\n\n{"id": "\xff"}\n', "line 3"),
    ],
)
def test_what_is_not_rows_is_a_users_error(tmp_path: Path, content: bytes | None, place: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts\.jsonl.*{place}") as caught:
        _rows(path)
    assert "\n" not in str(caught.value)
