"""Two runs agree where the spreads that they state overlap, and not otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import results

EVAL: dict[str, Any] = {
    "drafter": "smollm2-135m",
    "tau": 2.5,
    "speedup": 1.3,
    "intervals": {"tau": [2.4, 2.6], "speedup": [1.25, 1.35]},
    "domains": {"math": {"tau": 2.8, "speedup": 1.4, "intervals": {"tau": [2.6, 3.0], "speedup": None}}},
    "made": {"command": "dspark eval"},
}
BENCH: dict[str, Any] = {
    "rows": [
        {
            "mode": mode,
            "concurrency": 4,
            "throughput_quartiles": [90.0, 100.0, 110.0],
            "over": {"mode": "off", "median": 1.2, "pooled": 1.2, "interval": [1.1, 1.3]},
        }
        for mode in ("off", "adaptive")
    ],
    "made": {"command": "dspark bench"},
}


def run(folder: Path, **records: dict[str, Any]) -> Path:
    (folder / "records").mkdir(parents=True)
    for name, record in records.items():
        (folder / "records" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def compared(ours: Path, theirs: Path) -> int:
    return results.main(["--out", str(ours), "--compare", str(theirs / "records")])


def test_two_runs_whose_spreads_overlap_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, load = copy.deepcopy(EVAL), copy.deepcopy(BENCH)
    other["speedup"], other["intervals"]["speedup"] = 1.4, [1.34, 1.46]
    load["rows"][1]["over"] |= {"pooled": 1.36, "interval": [1.28, 1.45]}
    load["rows"][0]["throughput_quartiles"] = [50.0, 60.0, 70.0]  # another hour: told, and no disagreement
    assert compared(run(tmp_path / "a", e=EVAL, b=BENCH), run(tmp_path / "b", e=other, b=load)) == 0
    said = capsys.readouterr().out
    assert said.endswith("4 of 4 figures agree\n")  # tau and speed-up of all, tau of math, adaptive over off
    assert "moved    b                          off, 4 users: tokens a second" in said
    assert "math: speedup" not in said, "without an interval nothing can be said"


@pytest.mark.parametrize("which", ["tau of all", "tau of a domain", "a load's gain", "below"])
def test_control_a_figure_outside_the_spread_is_named(
    which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, load = copy.deepcopy(EVAL), copy.deepcopy(BENCH)
    match which:
        case "tau of all":
            other["tau"], other["intervals"]["tau"], named = 2.7, [2.61, 2.8], "smollm2-135m, all: tau"
        case "tau of a domain":
            other["domains"]["math"]["intervals"]["tau"], named = [3.01, 3.2], "smollm2-135m, math: tau"
        case "a load's gain":
            load["rows"][1]["over"]["interval"], named = [1.31, 1.4], "adaptive, 4 users: over off"
        case _:
            other["intervals"]["speedup"], named = [1.0, 1.24], "smollm2-135m, all: speedup"
    assert compared(run(tmp_path / "a", e=EVAL, b=BENCH), run(tmp_path / "b", e=other, b=load)) == 1
    said = capsys.readouterr().out
    (line,) = [each for each in said.splitlines() if each.startswith("DIFFERS")]
    assert named in line
    assert said.endswith("3 of 4 figures agree\n")


def test_what_only_one_run_has_and_what_was_measured_otherwise_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = EVAL | {"made": {"command": "dspark eval --dtype bfloat16"}}
    assert compared(run(tmp_path / "a", e=EVAL, b=BENCH), run(tmp_path / "b", e=other)) == 0
    said = capsys.readouterr()
    assert "b.json is in one of the runs alone" in said.out
    assert "e.json: not measured alike: 'dspark eval' and 'dspark eval --dtype bfloat16'" in said.err


def test_several_drafters_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [EVAL | {"drafter": name} for name in ("one", "two")]
    both = EVAL | {"drafters": rows}
    assert compared(run(tmp_path / "a", e=both), run(tmp_path / "b", e=both)) == 0
    said = capsys.readouterr().out
    assert "one, all: tau" in said and "two, math: tau" in said and said.endswith("6 of 6 figures agree\n")


def test_nothing_to_compare_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(run(tmp_path / "a", e=EVAL), run(tmp_path / "b", b=BENCH)) == 2
    assert "share no record with a spread" in capsys.readouterr().err
