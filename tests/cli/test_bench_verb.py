"""`dspark bench` on a tiny pair: the contract's rows, files that hang together, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dspark.decoding import sampler
from dspark.speculation.rejection import Verdict
from tiny_pair import Cli

PromptsFile = Callable[..., Path]
KEYS = {
    "mode",
    "concurrency",
    "throughput_tok_s",
    "throughput_quartiles",
    "per_user_tok_s",
    "tau",
    "verify_len",
    "draft_len",
    "ttft_ms",
    "planner_ms",
    "step_ms",
    "requests",
}
SMALL = ["--repeats", 2, "--limit", 4, "--max-tokens", 24]


def test_rows_are_the_contracts_and_files_tell_the_same(
    cli: Cli, tiny: list[object], prompts_file: PromptsFile, tmp_path: Path
) -> None:
    prompts, out, trace = prompts_file("p.jsonl", "abc", "def f", "1+1=?"), tmp_path / "out", tmp_path / "trace.json"
    line = ["bench", *tiny, *SMALL, "--concurrency", "1,3", "--modes", "off,fixed2,ngram,adaptive"]
    found = cli(*line, "--prompts", prompts, "--out", out, "--trace", trace, "--json", tmp_path / "bench.json")
    assert found.code == 0, found.err
    figures = json.loads((tmp_path / "bench.json").read_text())
    rows = figures["rows"]
    assert [(row["mode"], row["concurrency"]) for row in rows] == [
        (mode, users) for users in (1, 3) for mode in ("off", "fixed2", "ngram", "adaptive")
    ]
    for row in rows:
        assert row.keys() >= KEYS
        low, middle, high = row["throughput_quartiles"]
        assert 0 < low <= middle <= high and middle == pytest.approx(row["throughput_tok_s"])
        assert row["requests"] == 8 and row["identical"] == {"equal": 8, "total": 8, "unexplained": 0}
        assert row["over"]["mode"] == "off" and row["over_best_other"]["mode"] != row["mode"]
    off, fixed, *_ = rows
    assert off["over"]["median"] == 1.0 and (off["tau"], off["draft_len"], off["verify_len"]) == (1.0, 0.0, 0.0)
    assert 1.5 < fixed["draft_len"] <= 2 and fixed["verify_len"] > 1.5
    assert rows[3]["planner"]["steps"] > 0 and figures["costs"]["tokens"][0] == 1
    kept = [json.loads(each) for each in (out / "runs.jsonl").read_text().splitlines()]
    assert len(kept) == 2 * 2 * 4 and {each["turn"] for each in kept} == {0, 1}
    for name in ("frontier.svg", "load.svg"):
        assert "<!-- adaptive -->" in (out / name).read_text()
    spans = json.loads(trace.read_text())["traceEvents"]
    assert {each["args"]["name"] for each in spans if each["ph"] == "M"} == {"off", "fixed2", "ngram", "adaptive"}
    assert {"verify", "draft", "plan"} <= {each["name"].split(",")[0] for each in spans if each["ph"] == "X"}


def test_control_a_changed_text_fails_it(
    cli: Cli, tiny: list[object], prompts_file: PromptsFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gullible(own: Sequence[int], tokens: Sequence[list[int]]) -> list[Verdict]:
        verdicts, first = [], 0
        for drafted in tokens:
            verdicts.append(Verdict(len(drafted), own[first + len(drafted)]))
            first += len(drafted) + 1
        return verdicts

    monkeypatch.setattr(sampler, "_while_equal", gullible)
    line = ["bench", *tiny, *SMALL, "--concurrency", "2", "--modes", "off,fixed2", "--json", tmp_path / "b.json"]
    found = cli(*line, "--prompts", prompts_file("p.jsonl", "abc", "def f"))
    assert found.code == 1
    same = json.loads((tmp_path / "b.json").read_text())["rows"][1]["identical"]
    assert same["unexplained"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "1,x"], "--concurrency '1,x' is not understood; expected numbers from 1 on"),
        (["--concurrency", "0"], "--concurrency '0' is not understood"),
        (["--modes", "off,fast"], "no mode 'fast'; expected off, ngram, adaptive, delayed, or fixedK"),
        (["--modes", "off,fixed9"], "mode fixed9 asks for 9 drafts, the drafter's blocks have 4"),
        (["--modes", "off,mtp1"], "mode mtp1 drafts with an MTP-1 checkpoint, and the drafter is of kind dspark"),
        (["--modes", "off,off"], "--modes off,off names one twice"),
    ],
)
def test_mistakes_are_told_in_a_line(cli: Cli, tiny: list[object], options: list[Any], said: str) -> None:
    found = cli("bench", *tiny, *options)
    assert found.code == 2 and said in found.err and len(found.err.splitlines()) == 1
