"""Answers in one small file come back as they were, token for token; a damaged file is refused."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspark.data.archive import read_answers, read_archive, write_archive
from dspark.data.responses import Response
from dspark.foundation.errors import UserError
from dspark.foundation.records import JsonlWriter

IDS = st.lists(st.integers(0, 70_000), min_size=1, max_size=20)
ANSWERS = st.lists(
    st.builds(
        Response,
        id=st.text(min_size=1, max_size=5),
        turn=st.integers(0, 3),
        messages=st.just([]),
        prompt_ids=IDS,
        output_ids=IDS,
        finish_reason=st.sampled_from(["stop", "length"]),
        model=st.sampled_from(["one", "two"]),
        sampling=st.sampled_from([{"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.9}]),
    ),
    max_size=8,
)


@given(answers=ANSWERS)
def test_answers_come_back_as_they_were(answers: list[Response], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("archive") / "answers.xz"
    write_archive(path, answers)
    assert list(read_archive(path)) == answers


def one(tmp_path: Path, largest: int = 9) -> tuple[Path, Response]:
    answer = Response("a", 0, [], [1, 2, 3], [4, largest], "stop", "tiny", {"temperature": 0.0})
    write_archive(tmp_path / "answers.xz", [answer])
    return tmp_path / "answers.xz", answer


def test_ids_of_small_vocabularies_take_two_bytes(tmp_path: Path) -> None:
    sizes = [len(lzma.decompress(one(tmp_path, largest)[0].read_bytes())) for largest in (65_535, 65_536)]
    assert sizes[1] - sizes[0] == 2 * 5


def test_a_file_is_read_by_its_suffix(tmp_path: Path) -> None:
    path, answer = one(tmp_path)
    with JsonlWriter(tmp_path / "answers.jsonl") as writer:
        writer.append([answer.row()])
    assert list(read_answers(path)) == list(read_answers(tmp_path / "answers.jsonl")) == [answer]


@pytest.mark.parametrize("damage", ["cut", "other", "fewer", "row", "number", "negative", "empty", "missing"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path, _ = one(tmp_path)
    content = lzma.decompress(path.read_bytes())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other":
        path.write_bytes(lzma.compress(b'{"format": "pictures"}\n'))
    elif damage == "fewer":
        path.write_bytes(lzma.compress(content[:-2]))
    elif damage == "row":
        path.write_bytes(lzma.compress(content.replace(b'[["a",0,', b'[["a",')))
    elif damage == "number":
        path.write_bytes(lzma.compress(content.replace(b'"stop",0,0,3,2', b'"stop",0,5,3,2')))
    elif damage == "negative":
        path.write_bytes(lzma.compress(content.replace(b'"stop",0,0,3,2', b'"stop",0,-1,3,2')))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"answers.xz: is not an archive"):
        list(read_archive(path))
