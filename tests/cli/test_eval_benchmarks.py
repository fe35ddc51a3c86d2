"""`dspark eval` on benchmarks, with several drafters, killed and begun again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dspark.evaluation.samples import RUN, SAMPLES
from dspark.foundation.records import JsonlWriter, read_jsonl
from dspark.targets.model import load_target
from tiny_pair import Cli, make_drafter, make_target, make_tokenizer

ROOM = 640  # tokens: a benchmark's instructions are longer than the tiny pair's own context
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": "1+1=?"}, {"question": "2*3=?"}, {"question": "9-4=?"}],
    "math500": [{"problem": "Find $x$."}, {"problem": "Find $y$."}],
    "aime25": [{"problem": "Find $n$."}],
    "humaneval": [{"prompt": "def f():\n"}, {"prompt": "def g():\n"}],
    "mbpp": [{"prompt": "Write f."}, {"prompt": "Write g."}],
    "livecodebench": [{"question_content": "Add.", "starter_code": "class A: ..."}, {"question_content": "Sub."}],
    "mt-bench": [{"prompt": ["abc?", "And then?"]}, {"prompt": ["def?", "Why?"]}],
    "alpaca": [{"instruction": "abab"}, {"instruction": "Name it."}],
    "arena-hard-v2": [{"prompt": "Write zig."}],
}
DOMAINS = {"math": 6, "code": 6, "chat": 5}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A target with room for a benchmark's prompts and two drafters, of which the second knows less."""
    folder = tmp_path_factory.mktemp("roomy")
    target = make_target(folder / "target", make_tokenizer(), max_position_embeddings=ROOM)
    good, poor = make_drafter(folder / "good", target), folder / "poor"
    shutil.copytree(good, poor)
    tensors = load_file(poor / "model.safetensors")
    for name in ("norm.weight", "markov_head.markov_w2.weight"):
        tensors[name].neg_()  # its likeliest token is the least likely one
    save_file(tensors, poor / "model.safetensors")
    return target, good, poor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


Evaluate = Callable[..., tuple[Any, str]]


@pytest.fixture
def line(roomy: tuple[Path, Path, Path], folder: Path) -> list[object]:
    target, good, _ = roomy
    pair = ["--target", target, "--drafter", good, "--dtype", "float32", "--device", "cpu"]
    return ["eval", *pair, "--benchmark-folder", folder, "--max-tokens", 24]


@pytest.fixture
def evaluated(cli: Cli, line: list[object], tmp_path: Path) -> Evaluate:
    def run(*options: object) -> tuple[Any, str]:
        out = tmp_path / "eval.json"
        outcome = cli(*line, *options, "--json", out)
        assert outcome.code == 0, outcome.err
        return json.loads(out.read_text(encoding="utf-8")), outcome.out

    return run


def measured(figures: Any) -> Any:
    """All that does not depend on how fast the machine was."""
    timed = ("tok_s", "plain_tok_s", "speedup", "ngram_tok_s", "ngram_speedup", "machine", "kept")
    timed += ("round_ms", "plain_ms", "draft_slots")
    if isinstance(figures, dict):
        return {name: measured(value) for name, value in figures.items() if name not in timed}
    return [measured(each) for each in figures] if isinstance(figures, list) else figures


def test_all_benchmarks_make_three_domains_and_their_means(evaluated: Evaluate) -> None:
    figures, table = evaluated("--benchmark", "all")
    benchmarks, domains = figures["benchmarks"], figures["domains"]
    assert list(benchmarks) == list(ROWS) and list(domains) == list(DOMAINS)
    assert {name: each["prompts"] for name, each in benchmarks.items()} == {n: len(rows) for n, rows in ROWS.items()}
    assert {name: each["prompts"] for name, each in domains.items()} == DOMAINS
    assert (benchmarks["mt-bench"]["answers"], figures["answers"], figures["prompts"]) == (4, 19, 17)
    for f in (figures, *domains.values(), *benchmarks.values()):
        assert f["identical"] == {"equal": f["answers"], "total": f["answers"], "unexplained": 0}
        assert 0 < f["accepted"] <= f["drafted"] and f["tau"] > 1
        assert f["confidence"]["rounds"] >= 0
    for name, f in domains.items():
        taus = [each["tau"] for each in benchmarks.values() if each["domain"] == name]
        assert len(taus) == 3 and f["macro_tau"] == pytest.approx(sum(taus) / 3)
    assert figures["macro_tau"] == pytest.approx(sum(f["tau"] for f in benchmarks.values()) / 9)
    assert figures["left_out"] == [] and "drafters" not in figures
    rows = [row.split()[0] for row in table.splitlines()]
    assert rows[1:15] == [*list(ROWS)[:3], "math", *list(ROWS)[3:6], "code", *list(ROWS)[6:], "chat", "all", "macro"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_second_turn_is_asked_with_the_targets_own_first_answer(
    evaluated: Evaluate, roomy: tuple[Path, Path, Path], tmp_path: Path, temperature: int
) -> None:
    evaluated("--benchmark", "mt-bench", "--out", tmp_path / "run", "--temperature", temperature)
    rows = [row for _, row in read_jsonl(tmp_path / "run" / SAMPLES)]
    assert [(row["id"], row["turn"]) for row in rows] == [(f"mt-bench-{i}", turn) for i in (0, 1) for turn in (0, 1)]
    chat = load_target(str(roomy[0]), "float32", "cpu").chat
    for number, asked in enumerate(ROWS["mt-bench"]):
        first, second = rows[2 * number : 2 * number + 2]
        answer = chat.decode(first["runs"]["plain"]["output_ids"])
        turns = [{"role": "user", "content": text} for text in asked["prompt"]]
        assert answer and first["prompt_ids"] == chat.prompt_ids(turns[:1])
        messages = [turns[0], {"role": "assistant", "content": answer}, turns[1]]
        assert second["prompt_ids"] == chat.prompt_ids(messages)
        assert first["seed"] != second["seed"]


def test_files_and_benchmarks_together(evaluated: Evaluate, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"id": "m", "turns": ["abc", "and the second is not asked"]}\n', encoding="utf-8")
    figures, table = evaluated("--prompts", mine, "--benchmark", "gsm8k", "mt-bench", "--limit", 1)
    assert {name: f["prompts"] for name, f in figures["domains"].items()} == {"mine": 1, "math": 1, "chat": 1}
    assert list(figures["benchmarks"]) == ["gsm8k", "mt-bench"] and figures["answers"] == 4
    assert figures["macro_tau"] == pytest.approx(sum(f["tau"] for f in figures["domains"].values()) / 3)
    assert "mine" in table


def test_turns_without_room_are_left_out_and_told(cli: Cli, tiny: list[object], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    named = ["livecodebench", "mt-bench", "--benchmark-folder", folder]
    done = cli("eval", *tiny, "--benchmark", *named, "--max-tokens", 120, "--json", out)
    assert done.code == 0, done.err
    figures = json.loads(out.read_text())
    left = [(each["id"], each["turn"]) for each in figures["left_out"]]
    assert left[:2] == [("livecodebench-0", 0), ("livecodebench-1", 0)]
    assert set(left[2:]) <= {("mt-bench-0", 1), ("mt-bench-1", 1)}
    assert list(figures["benchmarks"]) == ["mt-bench"] and figures["answers"] == 4 - len(left[2:])
    assert "left out, since the context has no room for an answer: livecodebench-0 (turn 1), liv" in done.out
    none = cli("eval", *tiny, "--benchmark", "livecodebench", "--benchmark-folder", folder)
    assert none.code == 2 and "no prompt leaves room" in none.err


def test_several_drafters_share_prompts_and_the_plain_text(
    evaluated: Evaluate, roomy: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, good, poor = roomy
    alone, _ = evaluated("--benchmark", "all")
    both, table = evaluated("--benchmark", "all", "--drafter", poor, "--out", tmp_path / "run", "--no-lookup")
    first, second = both["drafters"]
    assert (first["drafter"], second["drafter"]) == (str(good), str(poor)) == (both["drafter"], str(poor))
    assert both["tau"] == first["tau"] > second["tau"] and both["domains"] == first["domains"]
    assert first["identical"] == second["identical"] == alone["identical"]
    assert measured(first)["confidence"] != measured(second)["confidence"]
    paired = second["paired"]
    assert paired["over"] == str(good) and "paired" not in first
    assert paired["tau"] == pytest.approx(second["tau"] / first["tau"])
    assert paired["tok_s"] == pytest.approx(second["tok_s"] / first["tok_s"])
    assert paired["macro_tau"] == pytest.approx(second["macro_tau"] / first["macro_tau"])
    low, high = paired["intervals"]["tau"]
    assert low <= paired["tau"] <= high < 1, "it is the worse one, on any draw of these prompts"
    for name, f in second["benchmarks"].items():
        assert paired["benchmarks"][name]["tau"] == pytest.approx(f["tau"] / first["benchmarks"][name]["tau"])
    for _, row in read_jsonl(tmp_path / "run" / SAMPLES):
        assert set(row["runs"]) == {"plain", str(good), str(poor), "ngram"}
        assert len({tuple(run["output_ids"]) for run in row["runs"].values()}) == 1, "greedy: one text"
    lines = [row.split() for row in table.splitlines()]
    assert [row[0] for row in lines].count(str(poor)) == 3 and [row[0] for row in lines].count("prompt") == 2
    *_, gains = (row for row in lines if row[0] == str(poor))
    assert f"{paired['tau']:.2f}" in gains


def test_begun_again_it_goes_on_and_ends_as_if_it_never_stopped(
    cli: Cli,
    line: list[object],
    evaluated: Evaluate,
    roomy: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--benchmark", "mbpp", "mt-bench", "--drafter", roomy[2], "--temperature", 1]
    whole, _ = evaluated(*options, "--out", tmp_path / "whole")
    append, folder = JsonlWriter.append, tmp_path / "stopped"

    def stopping(writer: JsonlWriter, rows: Any) -> None:
        append(writer, rows)
        if len(writer.path.read_bytes().splitlines()) in (1, 4):
            raise KeyboardInterrupt

    for written in (1, 4):
        with monkeypatch.context() as patch:
            patch.setattr(JsonlWriter, "append", stopping)
            assert cli(*line, *options, "--out", folder).code == 130
        assert len((folder / SAMPLES).read_text().splitlines()) == written
    with (folder / SAMPLES).open("a") as file:
        file.write('{"domain": "chat", "id": "half a row of a writer that was kil')
    found, table = evaluated(*options, "--out", folder)
    assert (found["kept"], whole["kept"]) == (4, 0) and "4 answers were kept from an earlier start" in table
    assert without_intervals_of_time(measured(found)) == without_intervals_of_time(measured(whole))
    ended = (folder / SAMPLES).read_bytes()
    again, _ = evaluated(*options, "--out", folder)
    assert again["kept"] == again["answers"] == 6 and (folder / SAMPLES).read_bytes() == ended
    assert again["speedup"] == found["speedup"], "nothing is timed again"
    fewer, _ = evaluated(*options, "--out", folder, "--limit", 1)
    assert (fewer["kept"], fewer["answers"]) == (3, 3)


def without_intervals_of_time(figures: Any) -> Any:
    if isinstance(figures, dict):
        kept = {name: without_intervals_of_time(value) for name, value in figures.items()}
        for intervals in [kept["intervals"]] if "intervals" in kept else []:
            intervals.pop("speedup", None), intervals.pop("tok_s", None)
        return kept
    return [without_intervals_of_time(each) for each in figures] if isinstance(figures, list) else figures


def test_samples_of_another_command_are_not_mixed(
    cli: Cli, line: list[object], roomy: tuple[Path, Path, Path], folder: Path, tmp_path: Path
) -> None:
    _, good, poor = roomy
    trained = tmp_path / "trained"
    shutil.copytree(good, trained)
    own = [trained if word == good else word for word in line]
    kept = [*own, "--benchmark", "mbpp", "--out", tmp_path / "run"]
    assert cli(*kept).code == 0
    before = (tmp_path / "run" / SAMPLES).read_bytes()
    other_prompts = tmp_path / "other"
    other_prompts.mkdir()
    (other_prompts / "mbpp.jsonl").write_text('{"prompt": "Write h."}\n')
    for options, told in (
        (["--max-tokens", 25], "max_tokens is 24 there and 25 here"),
        (["--seed", 1], "seed is 0 there and 1 here"),
        (["--drafter", poor], f"drafters.{poor}.config.json is None there"),
        (["--benchmark-folder", other_prompts], "another prompt of the name 'mbpp-0' (turn 0 of mbpp)"),
    ):
        refused = cli(*kept, *options)
        assert refused.code == 2 and told in refused.err, refused.err
    shutil.copy(poor / "model.safetensors", trained / "model.safetensors")
    refused = cli(*kept)
    assert refused.code == 2 and "model.safetensors is" in refused.err, "the weights behind a name count"
    assert (tmp_path / "run" / SAMPLES).read_bytes() == before
    assert json.loads((tmp_path / "run" / RUN).read_text())["max_tokens"] == 24


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--benchmark", "gsm8"], ["'gsm8'", "did you mean 'gsm8k'", "arena-hard-v2"]),
        (["--benchmark", "math", "--benchmark-folder", "absent"], ["absent is no folder", "gsm8k.jsonl"]),
        (["--benchmark", "mbpp", "--benchmark-folder", "."], ["has no mbpp.jsonl"]),
        (["--benchmark", "mbpp"], ["google-research-datasets/mbpp", "hub", "--benchmark-folder"]),
        (["--benchmark-folder", "."], ["no prompts were given", "--prompts", "--benchmark"]),
        (["--benchmark", "mbpp", "--drafter", "a", "--drafter", "a"], ["--drafter a is named twice"]),
        (["--benchmark", "mbpp", "--drafter", "ngram"], ["--drafter ngram", "./ngram"]),
        (["--benchmark", "mbpp", "--out", "/dev/null"], ["--out /dev/null is a file"]),
    ],
)
def test_mistakes(cli: Cli, options: list[str], told: list[str]) -> None:
    outcome = cli("eval", *options)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    for name in told:
        assert name in outcome.err
