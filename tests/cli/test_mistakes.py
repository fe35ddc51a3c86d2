"""Every mistake of a user ends with exit code 2 and one line that names the thing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load, save_file

from tiny_pair import CONTEXT, Cli, Outcome, make_target, make_tokenizer

PromptsFile = Callable[..., Path]


def refused(outcome: Outcome, *names: str) -> None:
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("dspark: ")
    for name in names:
        assert name in lines[0], lines[0]
    assert "Traceback" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (["evla"], ["'evla'", "'eval'"]),
        (["data"], ["dspark data --help"]),
        (["data", "regen"], ["'regen'", "'regenerate'"]),
        (["eval", "--promtps", "x"], ["--promtps"]),
        (["eval"], ["--prompts", "--domain"]),
        (["train"], ["--recipe"]),
        (["data", "regenerate", "--prompts", "x"], ["--out"]),
        (["generate"], ["prompt", "dspark generate --help"]),
        (["generate", ""], ["prompt is empty"]),
        (["generate", "x", "--raw", "--system", "y"], ["--system", "--raw"]),
        (["generate", "x", "--max-tokens", "0"], ["--max-tokens"]),
        (["generate", "x", "--max-tokens", "many"], ["--max-tokens"]),
        (["generate", "x", "--temperature", "-1"], ["temperature is -1.0"]),
        (["generate", "x", "--temperature", "nan"], ["temperature is nan"]),
        (["generate", "x", "--top-p", "1.5"], ["top_p is 1.5"]),
        (["generate", "x", "--top-k", "-2"], ["--top-k"]),
        (["generate", "x", "--json", "."], ["--json ."]),
        (["calibrate", "--prompts", "x", "--plots", "/dev/null"], ["--plots /dev/null"]),
        (["calibrate", "--prompts", "x", "--judge", "a/y.jsonl", "--judge", "b/y.jsonl"], ["--judge", "same name"]),
        (["generate", "x", "--device", "abacus"], ["abacus"]),
        (["generate", "x", "--json", "/dev/null"], ["--json /dev/null"]),
        (["generate", "x", "--dtype", "int3"], ["dspark: dtype 'int3'", "float32"]),
        (["demo", "--seconds", "nan"], ["--seconds is nan"]),
        (["demo", "--seconds", "inf"], ["--seconds is inf"]),
        (["demo", "--seconds", "0"], ["--seconds is 0"]),
        (["data", "regenerate", "--prompts", "x", "--out", "."], ["--out ."]),
        (["train", "--recipe", "smollm2-135m", "--dtype", "int3"], ["dtype", "int3"]),
        (["generate", "x", "--target", "no-such-model"], ["no-such-model", "hub id"]),
        (["eval", "--prompts", "x", "--limit", "0"], ["--limit"]),
        (["eval", "--prompts", "x", "--max-tokens", "0"], ["--max-tokens"]),
        (["eval", "--prompts", "x", "--temperature", "-0.5"], ["temperature is -0.5"]),
        (["eval", "--domain", "math"], ["--domain 'math'", "NAME=FILE"]),
        (["eval", "--domain", "=x"], ["--domain '=x'"]),
        (["eval", "--prompts", "absent.jsonl"], ["absent.jsonl"]),
        (["data", "regenerate", "--prompts", "x", "--out", "y", "--slots", "0"], ["--slots"]),
        (["data", "regenerate", "--prompts", "x", "--out", "y", "--top-p", "0"], ["top_p is 0.0"]),
        (["train", "--recipe", "smolm2"], ["'smolm2'", "did you mean 'smollm2-135m'?"]),
        (["train", "--recipe", "smollm2-135m", "--set", "trainer.stpes=3"], ["trainer.stpes", "trainer.steps"]),
        (["train", "--recipe", "smollm2-135m", "--set", "trainer.steps=0"], ["trainer.steps", "0"]),
        (["train", "--recipe", "smollm2-135m", "--set", "steps"], ["'steps'", "KEY.KEY=VALUE"]),
        (["train", "--recipe", "smollm2-135m"], ["responses.jsonl", "dspark data regenerate"]),
    ],
)
def test_a_wrong_command_line(cli: Cli, line: list[str], names: list[str], tiny: list[object]) -> None:
    known = {str(word) for word in line}
    if line[0] == "generate" and line[1:2] == ["x"]:
        pairs = zip(tiny[::2], tiny[1::2], strict=True)
        line = [*line, *(str(word) for pair in pairs if pair[0] not in known for word in pair)]
    refused(cli(*line), *names)


def test_a_target_that_is_none(cli: Cli, tmp_path: Path, tiny_drafter: Path) -> None:
    (tmp_path / "bare").mkdir()
    line = ["generate", "x", "--drafter", tiny_drafter, "--target"]
    refused(cli(*line, tmp_path / "bare"), "bare", "config.json")
    refused(cli(*line, tmp_path / "absent"), "absent")
    refused(cli(*line, tmp_path / "absent.gguf"), "absent.gguf")
    (tmp_path / "bare" / "config.json").write_text("{", encoding="utf-8")
    refused(cli(*line, tmp_path / "bare"), "bare")


def test_a_damaged_target(cli: Cli, tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_target, folder)
    line = ["generate", "x", "--target", folder, "--drafter", tiny_drafter, "--dtype", "float32"]
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(cli(*line), "damaged", "get its files again")
    tensors = load(whole)
    save_file({name: t for name, t in tensors.items() if "layers.2.mlp" not in name}, weights, {"format": "pt"})
    refused(cli(*line), "damaged", "lacks 3 weights", "model.layers.2.mlp.down_proj.weight")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"][:-1]}, weights, {"format": "pt"})
    refused(cli(*line), "damaged", "get its files again")
    weights.write_bytes(whole)
    assert cli(*line, "--max-tokens", 2).code == 0
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(cli(*line), "damaged", "get its files again")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    refused(cli("generate", "x", "--target", tmp_path / "broken.gguf"), "broken.gguf", "can't be read as a GGUF")


def test_a_drafter_that_is_none(cli: Cli, tmp_path: Path, tiny_target: Path, tiny_drafter: Path) -> None:
    line = ["generate", "x", "--target", tiny_target, "--dtype", "float32", "--drafter"]
    run = tmp_path / "run"
    shutil.copytree(tiny_drafter, run / "drafter")
    refused(cli(*line, run), "config.json", f"did you mean {run / 'drafter'}?")
    refused(cli(*line, tmp_path / "absent"), "absent")
    refused(cli(*line, run / "drafter" / "config.json"), "is a file")
    (run / "drafter" / "model.safetensors").write_bytes(b"short")
    refused(cli(*line, run / "drafter"), "model.safetensors")


def test_a_drafter_of_another_target(cli: Cli, tmp_path: Path, tiny_drafter: Path) -> None:
    others = {
        "tokenizer hash": make_target(tmp_path / "wrong-tokenizer", make_tokenizer(("c", "d"))),
        "number of layers": make_target(tmp_path / "deeper", make_tokenizer(), num_hidden_layers=5),
    }
    for reason, folder in others.items():
        outcome = cli("generate", "x", "--target", folder, "--drafter", tiny_drafter, "--dtype", "float32")
        refused(outcome, reason, "tiny-target", folder.name, "use the target it was trained for")


def test_prompts_that_are_none(cli: Cli, tmp_path: Path, tiny: list[object], prompts_file: PromptsFile) -> None:
    empty, broken = tmp_path / "empty.jsonl", prompts_file("broken.jsonl", "a", "b")
    empty.touch()
    for verb in (["eval", *tiny], ["data", "regenerate", "--target", tiny[1], "--out", tmp_path / "out.jsonl"]):
        refused(cli(*verb, "--prompts", empty), "empty.jsonl")
        text = broken.read_text(encoding="utf-8")
        broken.write_text(text + '{"id": "c", "turns"\n', encoding="utf-8")
        refused(cli(*verb, "--prompts", broken), "broken.jsonl, line 3")
        broken.write_text(text, encoding="utf-8")
        refused(cli(*verb, "--prompts", broken, broken), "broken-0", "unique")


def test_a_prompt_longer_than_the_context(cli: Cli, tiny: list[object], prompts_file: PromptsFile) -> None:
    long = "x" * (CONTEXT + 1)
    refused(cli("generate", long, *tiny), "tiny-target", f"{CONTEXT}")
    refused(cli("eval", "--prompts", prompts_file("p.jsonl", "a", long), *tiny), "p-1", "of p", f"{CONTEXT}")


def test_regeneration_without_room_or_into_anothers_file(
    cli: Cli, tiny_target: Path, tmp_path: Path, prompts_file: PromptsFile
) -> None:
    prompts, out = prompts_file("p.jsonl", "a"), tmp_path / "out.jsonl"
    line = ["data", "regenerate", "--prompts", prompts, "--out", out, "--target", tiny_target]
    refused(cli(*line, "--max-tokens", CONTEXT), "--max-tokens", "tiny-target")
    assert cli(*line, "--max-tokens", 4, "--temperature", 0).code == 0
    refused(cli(*line, "--max-tokens", 4, "--temperature", 1), "out.jsonl", "another --out")


def test_answers_that_can_not_be_trained_on(cli: Cli, tiny_target: Path, tmp_path: Path) -> None:
    recipe, answers = tmp_path / "tiny.yaml", tmp_path / "answers.jsonl"
    drafter = "{layers: 1, draft_vocab_size: 0, target_layer_ids: [0, 2], mask_token_id: 0}"
    data = "{responses: [answers.jsonl], held_out_percent: 50}"
    recipe.write_text(f"target: {tiny_target}\ndata: {data}\ndrafter: {drafter}\n", encoding="utf-8")
    line = ["train", "--recipe", recipe, "--run", "run"]
    answers.touch()
    refused(cli(*line), "answers.jsonl is empty")
    row = {"id": "a", "turn": 0, "messages": [], "prompt_ids": [1], "output_ids": [5, 6, 7]}
    row |= {"finish_reason": "length", "model": "tiny-target", "sampling": {}}
    answers.write_text(json.dumps(row) + '\n{"id": "b"}\n', encoding="utf-8")
    refused(cli(*line), "answers.jsonl, line 2", "lacks turn")
    answers.write_text(json.dumps(row) + "\n", encoding="utf-8")
    refused(cli(*line), "1 answers leave", "held out")
    foreign = row | {"output_ids": [5, 99_999]}
    answers.write_text("".join(json.dumps(foreign | {"id": str(i)}) + "\n" for i in range(20)), encoding="utf-8")
    refused(cli(*line), "token id 99999", "tiny-target")
    refused(cli(*line, "--resume", "--run", "typo"), "there is no run in typo")
    (tmp_path / "file").touch()
    refused(cli(*line, "--run", "file"), "--run file is a file")


def test_answers_are_never_written_into_a_file_that_holds_none(
    cli: Cli, tiny_target: Path, tmp_path: Path, prompts_file: PromptsFile
) -> None:
    out = tmp_path / "notes.json"
    out.write_text('["mine"]', encoding="utf-8")
    line = ["data", "regenerate", "--prompts", prompts_file("p.jsonl", "a"), "--out", out, "--target", tiny_target]
    refused(cli(*line, "--max-tokens", 4), "notes.json", "choose another file")
    assert out.read_text(encoding="utf-8") == '["mine"]'
