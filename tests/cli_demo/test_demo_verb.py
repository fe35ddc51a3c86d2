"""`dspark demo` from end to end on a tiny pair: figures, page, prompts, and the alarm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dspark.cli.demo import demo_prompts
from dspark.cli.machine import processor_name
from dspark.cli.main import main
from dspark.decoding import profile
from dspark.decoding.profile import Prices
from dspark.speculation.rejection import Verdict

QUICK = ["demo", "--max-tokens", "20", "--repeats", "2", "--seconds", "60"]
KEYS = {"domain", "plain_tok_s", "spec_tok_s", "speedup", "tau", "identical"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile, "measure", lambda *_: Prices(1.0, (1.0, 1.1, 1.2, 1.3, 1.4)))  # whatever the load is
    monkeypatch.delenv("DSPARK_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_demo_shows_measures_and_leaves_a_page(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *tiny, "--json", "demo.json"]) == 0
    captured = capsys.readouterr()
    record = read("demo.json")
    assert [pair["domain"] for pair in record["pairs"]] == ["math", "code", "chat"]
    for pair in (*record["pairs"], record["all"]):
        assert pair.keys() >= KEYS
        assert pair["speedup"] == pytest.approx(pair["spec_tok_s"] / pair["plain_tok_s"])
        assert 1 <= pair["tau"] <= 5
        assert 0 <= pair["accepted"] <= pair["drafted"]
        low, high = pair["spec_quartiles"]
        assert 0 < low <= pair["spec_tok_s"] <= high
    assert 0 < record["all"]["accepted"] < record["all"]["drafted"]
    assert [pair["identical"] for pair in record["pairs"]] == [{"equal": 2, "total": 2, "unexplained": 0}] * 3
    assert (record["repeats"], record["shown_tokens"], record["block"]) == (2, 20, 4)
    assert len(record["showings"]) == 6
    for one, prompt in zip(record["showings"], demo_prompts(), strict=True):
        assert (one["id"], one["prompt"]) == (prompt.id, prompt.text)
        assert "".join(span["text"] for span in one["spec_spans"]) == one["plain_text"]
        assert prompt.text in captured.out
    page = Path("dspark-demo.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert f"{record['all']['tau']:.2f}" in page
    assert "page: dspark-demo.html" in captured.out
    assert "\x1b" not in captured.out
    assert "repeats" in captured.err


def test_control_a_loop_that_accepts_everything_is_caught(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gullible(logits_NV: Tensor, tokens: Sequence[list[int]]) -> list[Verdict]:
        (drafted,) = tokens
        return [Verdict(len(drafted), int(logits_NV[-1].argmax()))]

    monkeypatch.setattr("dspark.decoding.sampler._greedy", gullible)
    assert main([*QUICK, *tiny, "--json", "demo.json", "--page", "sub/page.html"]) == 1
    record = read("demo.json")
    unexplained = record["all"]["identical"]["unexplained"]
    assert unexplained > 0
    assert record["all"]["identical"]["equal"] == 6 - unexplained
    assert f"FAILURE: {unexplained} of 6 prompts" in capsys.readouterr().out
    assert "FAILURE" in Path("sub/page.html").read_text(encoding="utf-8")


def test_the_shortest_answers_leave_valid_files(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *tiny, "--max-tokens", "1", "--repeats", "1", "--json", "demo.json"]) == 0
    record = json.loads(Path("demo.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert record["all"]["tau"] is None
    assert "nan" not in Path("dspark-demo.html").read_text(encoding="utf-8").lower()
    assert " nan" not in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--page", "there"], ["--json", "there"], ["--page", "file/page.html"]])
def test_a_place_that_can_not_be_written_is_refused_before_the_work(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there").mkdir()
    Path("file").write_text("", encoding="utf-8")
    assert main(["demo", "--target", "no-such-target", *option]) == 2
    err = capsys.readouterr().err
    assert option[1] in err
    assert len(err.splitlines()) == 1


def test_the_prompts_are_two_of_each_domain() -> None:
    prompts = demo_prompts()
    assert [prompt.domain for prompt in prompts] == ["math", "math", "code", "code", "chat", "chat"]
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 6
    assert all(20 < len(prompt.text) < 200 for prompt in prompts)


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n", encoding="utf-8")
    assert processor_name(path) == "Some CPU @ 2 GHz"
    assert processor_name(tmp_path / "none")
