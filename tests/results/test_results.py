"""benchmarks/results.py on a tiny pair: every record, nothing of the machine in it, and a run that goes on."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from measurements import ALL, MEASUREMENTS, QUICK, Measurement, options_of

import results
from dspark.cli.arguments import spread
from dspark.cli.main import app
from tiny_pair import Cli

PROGRAM: Any = typer.main.get_command(app)
PromptsFile = Callable[..., Path]
RECORDS = [each.record for each in MEASUREMENTS]
KEYS = {
    "profile": {"batch_tokens", "step_ms", "draft_ms", "requests", "machine"},
    "eval": {"tau", "macro_tau", "domains", "conditional_acceptance", "intervals", "machine"},
    "calibrate": {"before", "chosen", "constant", "reliability", "thresholds"},
    "bench": {"rows", "machine"},
}


@pytest.fixture
def prompts(prompts_file: PromptsFile) -> Path:
    """A folder with prompts of a benchmark and of nobody's."""
    texts = ["abc", "def f", "1+1=?", "Why?", "ab ab", "Name it."]
    for name in ("gsm8k", "mine"):
        found = prompts_file(f"{name}.jsonl", *texts)
    return found.parent


@pytest.fixture
def line(tiny: list[object], prompts: Path, tmp_path: Path) -> list[str]:
    return [str(word) for word in ("--busy", "--quick", *tiny, "--prompts", prompts, "--out", tmp_path / "out")]


class Verbs:
    """Runs verbs in this process and keeps what was asked; ``report`` and what ``stands_in`` names are not run."""

    def __init__(self, cli: Cli, stands_in: dict[str, int] | None = None) -> None:
        self.cli, self.asked = cli, list[list[str]]()
        self.stands_in = {"report": 0} | (stands_in or {})

    def __call__(self, words: Sequence[str]) -> int:
        self.asked.append([*words])
        if words[0] not in self.stands_in:
            done = self.cli(*words)
            assert done.code == 0, done.err
            return done.code
        if "--json" in words and not self.stands_in[words[0]]:
            Path(words[words.index("--json") + 1]).write_text('{"a": 1}')
        return self.stands_in[words[0]]


def test_every_record_is_made_once_and_names_no_place(cli: Cli, line: list[str], prompts: Path, tmp_path: Path) -> None:
    verbs = Verbs(cli)
    assert results.main(line, verbs) == 0
    files = [tmp_path / "out" / "records" / f"{name}.json" for name in RECORDS]
    assert verbs.asked[-1] == ["report", *map(str, files), "--out", str(tmp_path / "out")]
    assert [each[0] for each in verbs.asked[:-1]] == [each.verb for each in MEASUREMENTS]
    for each, file in zip(MEASUREMENTS, files, strict=True):
        text = file.read_text(encoding="utf-8")
        record = json.loads(text)
        assert record.keys() >= KEYS[each.verb] | {"made"}, each
        assert "gsm8k.jsonl" in text or "--benchmark gsm8k" in text or each.verb == "profile"
        assert record["made"]["command"].startswith(f"dspark {each.verb} ")
        assert record["machine"]["load before"] == f"{record['made']['load']:.1f}", "that before all of them"
        for place in (tmp_path, tmp_path.parent, Path.home(), results.ROOT, prompts.resolve()):
            assert str(place) not in text, (each, place)
    assert sum(file.stat().st_size for file in files) < 1e6
    evaluated = json.loads(files[RECORDS.index("eval-greedy")].read_text())
    assert list(evaluated["domains"]) == ["mine", "math"] and list(evaluated["benchmarks"]) == ["gsm8k"]
    assert not (Path(line[line.index("--drafter") + 1]) / "calibration.json").exists(), "the drafter is as it was"

    verbs.asked.clear()
    assert results.main(line, verbs) == 0
    assert [each[0] for each in verbs.asked] == ["report"], "nothing is measured again"


def test_a_comparison_that_lies_beside_the_records_is_on_the_page(cli: Cli, line: list[str], tmp_path: Path) -> None:
    verbs, rows = Verbs(cli, {"report": 0}), tmp_path / "out" / "records" / "comparison.jsonl"
    assert results.main([*line, "--parts", "report"], verbs) == 0
    rows.parent.mkdir(parents=True)
    rows.write_text("{}\n")
    assert results.main([*line, "--parts", "report"], verbs) == 0
    assert verbs.asked == [["report", *some, "--out", str(tmp_path / "out")] for some in ([], [str(rows)])]


def test_a_run_that_failed_goes_on_where_it_was(
    cli: Cli, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Verbs(cli, {"profile": 0, "eval": 0, "calibrate": 1})
    assert results.main(line, failing) == 2
    assert "calibrate ended with exit code 1, so calibration-greedy.json is not written" in capsys.readouterr().err
    there = {each.stem for each in (tmp_path / "out" / "records").iterdir()}
    assert there == {each.record for each in MEASUREMENTS if each.verb in ("profile", "eval")}
    well = Verbs(cli, {"profile": 0, "eval": 0, "calibrate": 0, "bench": 0})
    assert results.main(line, well) == 0
    assert [each[0] for each in well.asked] == ["calibrate"] * 2 + ["bench"] * 3 + ["report"]


def test_parts_are_measured_by_name_and_again(cli: Cli, line: list[str]) -> None:
    verbs = Verbs(cli, {"profile": 0, "bench": 0})
    for words in ("profile,bench", "profile"):
        assert results.main([*line, "--parts", words], verbs) == 0
    assert [each[0] for each in verbs.asked] == ["profile", "bench", "bench", "bench"]
    assert results.main([*line, "--parts", "profile", "--again"], verbs) == 0
    assert len(verbs.asked) == 5


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--quick", "--busy"], "--quick would leave figures that mean nothing in docs/results"),
        (["--prompts", ".", "--out", "out", "--busy"], "--prompts . has no .jsonl file"),
        (["--out", "out"], "the load of this machine is 0.60"),
    ],
)
def test_what_would_mean_nothing_is_refused(
    words: list[str],
    complaint: str,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.6, 0.0, 0.0))
    monkeypatch.setattr(results, "PARTS", ("profile",))
    verbs = Verbs(cli, {"profile": 0})
    assert results.main([*words, "--again"], verbs) == 2
    assert complaint in capsys.readouterr().err
    assert not verbs.asked


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        results.main(["--parts", "eval,guess"])
    assert "'guess' is none; there are profile, eval, calibrate, bench, report" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("each", MEASUREMENTS, ids=lambda each: each.record)
def test_every_line_is_one_that_the_program_understands(each: Measurement, quick: bool, prompts: Path) -> None:
    words = [*options_of(each, quick, prompts), "--json", "figures.json"]
    command = PROGRAM.commands[each.verb]
    context = command.make_context(each.verb, spread(words))
    if "--limit" in each.options:
        own, tiny = (int(re.findall(r"--limit (\d+)", text)[0]) for text in (each.options, QUICK[each.verb]))
        assert context.params["limit"] == (tiny if quick else own) and tiny < own
    assert bool(context.params.get("planned")) == ("--planned" in each.options)


def test_all_of_it_is_meant_to_take_less_than_an_hour() -> None:
    assert 0 < sum(each.minutes for each in MEASUREMENTS) < 60
    assert len(set(RECORDS)) == len(RECORDS)


def test_without_a_folder_the_hub_is_asked_and_the_demo_is_the_load() -> None:
    by_verb = {each.verb: [*options_of(each, False, None)] for each in MEASUREMENTS if each.verb in ("eval", "bench")}
    assert by_verb["eval"][-2:] == ["--benchmark", ALL]
    assert "--prompts" not in by_verb["bench"]


@pytest.mark.parametrize(("prompts", "words"), [("", " "), ("PROMPTS=dir", " --prompts dir ")])
def test_make_runs_it(prompts: str, words: str) -> None:
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/.installed",
        "results",
        *prompts.split(),
        "RESULTS_ARGS=--again",
    ]
    done = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].replace("  ", " ") == f".venv/bin/python benchmarks/results.py{words}--again"
