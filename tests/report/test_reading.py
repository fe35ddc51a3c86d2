"""Records are told apart by their keys; what is none is refused by name, with what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_records import bench, calibration, comparison, costs, evaluation, log, write_all, write_rows

from dspark.foundation.errors import UserError
from dspark.report.reading import read


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_each_kind_is_told_by_its_keys(tmp_path: Path) -> None:
    runs = write_all(tmp_path / "records")
    kinds = [each.kind.name for each in read(runs).found]
    assert kinds == ["evaluation", "comparison", "calibration", "bench", "costs", "training"]


def test_a_folder_gives_the_records_that_lie_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    runs = write_all(folder)
    write(folder / "config.json", {"hidden_size": 4})
    write_rows(folder / "runs.jsonl", [{"mode": "off", "concurrency": 1, "turn": 0}])
    write(folder / "notes.txt", "no record")
    reading = read([folder])
    assert sorted(each.record.name for each in reading.found) == [
        f"records/{name}" for name in ("bench.json", "calibrate.json", "comparison.jsonl", "eval.json", "profile.json")
    ]
    assert reading.left_out == ("records/config.json", "records/runs.jsonl")
    again = read([runs[0], folder, *runs])
    assert [each.record.name for each in again.found].count("records/eval.json") == 1
    assert again.found[0].record.name == "records/eval.json" and len(again.found) == 6


def test_the_recipe_beside_a_log_is_read_with_it(tmp_path: Path) -> None:
    *_, run = write_all(tmp_path / "records")
    (found,) = read([run]).found
    assert found.value.name == "a-run" and found.facts["drafter"] == "kind dspark, layers 3, block size 5"
    assert len(found.value.losses) == 40 and [each.step for each in found.value.validations] == [100, 200, 300, 400]
    (run / "recipe.yaml").unlink()
    assert "drafter" not in read([run]).found[0].facts


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("none.json", None, "can't be read"),
        ("none.txt", None, "is not there; expected a folder, or a .json or .jsonl file"),
        ("notes.txt", "x", "is no record; expected a folder"),
        ("cut.json", '{"tau": 1', "not valid JSON"),
        ("list.json", [1], "holds a JSON list"),
        ("empty.jsonl", "", "has no rows"),
        ("other.json", {"a": 1, "b": 2}, "holds a, b, which is no record of a verb; expected what one of these wrote"),
        (
            "runs.jsonl",
            {"mode": "off", "concurrency": 1, "turn": 0},
            "runs of a bench; expected its rows: `dspark bench",
        ),
        ("samples.jsonl", {"runs": {}, "comparisons": {}}, "`dspark eval --json FILE`"),
        ("costs.json", {"tokens": [1], "drafts": [1], "weights": [], "padded": []}, "`dspark profile --json FILE`"),
        ("calibration.json", {"regimes": []}, "`dspark calibrate --json FILE`"),
        ("train.json", {"steps": 2, "validation": {}}, "the folder of the run: `dspark train --run DIR`"),
        ("demo.json", {"showings": [], "pairs": []}, "`dspark demo --page FILE`"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, name: str, data: Any, complaint: str) -> None:
    path = tmp_path / name
    if data is not None:
        write(path, data)
    with pytest.raises(UserError) as refused:
        read([path])
    assert name in str(refused.value) and complaint in str(refused.value)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "has no .json or .jsonl files; expected what one of these wrote"),
        ({"runs.jsonl": '{"mode": "off", "turn": 0}'}, "holds no record; runs.jsonl holds the runs of a bench"),
        ({"config.json": "{}"}, "holds no record; config.json holds nothing, which is no record"),
    ],
)
def test_a_folder_without_records_says_why(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(UserError) as refused:
        read([tmp_path])
    assert complaint in str(refused.value)


def without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        (
            "eval.json",
            without(evaluation(), "drafters") | {"speedup": "fast"},
            "'fast' stands where a number is expected",
        ),
        ("eval.json", without(evaluation(), "drafters") | {"domains": []}, "is broken"),
        (
            "eval.json",
            without(evaluation(), "drafters") | {"reached": [1]},
            "acceptance is told at 5 positions, rounds at 1",
        ),
        ("eval.json", evaluation(drafters=[]), "is broken"),
        ("eval.json", without(evaluation(), "planned"), "lacks 'planned'"),
        ("bench.json", bench() | {"rows": 3}, "is broken"),
        ("bench.json", bench() | {"rows": [{"mode": "off"}]}, "lacks 'throughput_quartiles'"),
        ("calibrate.json", calibration() | {"before": calibration(3)["before"]}, "figures stand where"),
        ("profile.json", costs() | {"step_ms": [1.0]}, "is broken"),
        ("profile.json", costs() | {"step_ms": [True] * 7}, "True stands where a number is expected"),
        ("log.jsonl", log()[0] | {"step": 1.5}, "1.5 stands where a whole number is expected"),
        ("log.jsonl", log()[0] | {"step": 10**400}, "stands where a whole number is expected"),
        ("comparison.jsonl", without(comparison()[0], "decoded"), "lacks 'decoded'"),
        ("comparison.jsonl", comparison()[0] | {"lr": 1e300}, "1e+300 stands where a number is expected"),
    ],
)
def test_a_broken_record_is_refused_with_what_is_wrong(
    tmp_path: Path, name: str, data: dict[str, Any], complaint: str
) -> None:
    write(tmp_path / name, data)
    with pytest.raises(UserError, match="write it again with `") as refused:
        read([tmp_path / name])
    assert name in str(refused.value) and complaint in str(refused.value)
