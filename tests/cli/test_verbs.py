"""The verbs on a tiny pair: what they write and whether it is true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dspark.calibration.record import Recorded
from dspark.cli.pair import load_pair
from dspark.decoding import profile
from dspark.decoding.profile import Prices
from dspark.drafters.checkpoint import CALIBRATION, read_calibrations
from dspark.foundation.settings import load_settings
from dspark.serving.tokens import UNFINISHED, TextStream
from dspark.speculation.confidence import Platt, Temperatures
from dspark.speculation.cost import CostModel
from dspark.speculation.rejection import Verdict
from dspark.speculation.sampling import Sampling
from dspark.targets.model import load_target
from dspark.training.recipe import Recipe
from servers import Server, serving
from tiny_pair import Cli, make_tokenizer

PromptsFile = Callable[..., Path]
RECIPES = sorted((Path(__file__).parents[2] / "src" / "dspark" / "recipes").glob("*.yaml"))


def read(path: Path) -> Any:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)


def test_generate_is_the_same_text_with_and_without_drafting(
    cli: Cli, tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "measure", lambda *_: Prices(1.0, (1.0, 1.1, 1.2, 1.3, 1.4)))  # whatever the load is
    line = ["generate", "abc, and then?", *tiny, "--max-tokens", 60, "--json"]
    spec, plain = cli(*line, tmp_path / "spec.json"), cli(*line, tmp_path / "plain.json", "--plain")
    assert (spec.code, plain.code) == (0, 0), spec.err + plain.err
    assert spec.out == plain.out
    assert len(spec.err.splitlines()) == 1
    fast, slow = read(tmp_path / "spec.json"), read(tmp_path / "plain.json")
    assert fast["token_ids"] == slow["token_ids"]
    assert 0 < fast["accepted"] < fast["drafted"]
    assert (slow["drafted"], slow["accepted"], slow["tau"]) == (0, 0, 1.0)
    for figures, outcome in ((fast, spec), (slow, plain)):
        assert figures["text"] + "\n" == outcome.out
        assert figures["tau"] == pytest.approx((len(figures["token_ids"]) - 1) / figures["rounds"])
        assert figures["tok_s"] == pytest.approx(len(figures["token_ids"]) / figures["seconds"])


def test_generate_raw_and_one_token(cli: Cli, tiny: list[object], tmp_path: Path) -> None:
    out = tmp_path / "raw.json"
    assert cli("generate", "abc", *tiny, "--raw", "--max-tokens", 1, "--json", out).code == 0
    figures = read(out)
    assert figures["prompt_tokens"] == 2  # "ab" and "c", and nothing of the template
    assert (figures["rounds"], figures["tau"]) == (0, None)


def test_a_coupled_seed_is_one_text_with_and_without_drafting(cli: Cli, tiny: list[object], tmp_path: Path) -> None:
    line = ["generate", "abc, and then?", *tiny, "--max-tokens", 60, "--temperature", 1, "--seed", 5]
    spec, plain = cli(*line, "--coupled", "--json", tmp_path / "spec.json"), cli(*line, "--coupled", "--plain")
    assert (spec.code, plain.code) == (0, 0), spec.err + plain.err
    assert spec.out == plain.out != cli(*line, "--plain").out
    figures = read(tmp_path / "spec.json")
    assert figures["coupled"] and figures["accepted"] > 0


def test_sampling_is_fixed_by_the_seed(cli: Cli, tiny: list[object]) -> None:
    line = ["generate", "abc", *tiny, "--max-tokens", 40, "--temperature", 1, "--seed"]
    assert cli(*line, 1).out == cli(*line, 1).out != cli(*line, 2).out


def test_streamed_pieces_join_to_the_text_and_split_no_character() -> None:
    tokenizer = make_tokenizer()

    def decode(ids: Any) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    texts = ["naïve café, 漢字 and 🙂🙃!", "ab" * 5, "🙂"]
    streams = [tokenizer(text)["input_ids"] for text in texts]
    streams[0] += [1, 2]  # special tokens have no text
    generator = torch.Generator().manual_seed(0)
    streams += [torch.randint(len(tokenizer), (60,), generator=generator).tolist() for _ in range(20)]
    for index, ids in enumerate(streams):
        for step in (1, 2, 5):
            stream = TextStream(decode)
            pieces = [stream.push(ids[i : i + step]) for i in range(0, len(ids), step)]
            if index < len(texts):
                assert not any(UNFINISHED in piece for piece in pieces)
            assert "".join(pieces) + stream.finish() == decode(ids)


@pytest.fixture
def evaluated(cli: Cli, tiny: list[object], prompts_file: PromptsFile, tmp_path: Path) -> Callable[..., Any]:
    def run(*options: object) -> tuple[Any, str]:
        math, code = prompts_file("gsm.jsonl", "abc", "1+1=?", "never"), prompts_file("mbpp.jsonl", "def f", "x=2")
        out = tmp_path / "eval.json"
        line = ["--prompts", math, "--domain", f"code={code}", "--limit", 2, "--max-tokens", 32]
        outcome = cli("eval", *line, "--json", out, *tiny, *options)
        assert outcome.code == 0, outcome.err
        return read(out), outcome.out

    return run


def test_eval_figures_are_complete_and_hang_together(evaluated: Callable[..., Any]) -> None:
    figures, table = evaluated()
    domains = figures["domains"]
    assert list(domains) == ["gsm", "code"]
    assert figures["prompts"] == 4
    for f in (figures, *domains.values()):
        assert f["tau"] == pytest.approx((f["tokens"] - f["prompts"]) / f["rounds"])
        assert 0 < f["accepted"] < f["drafted"]
        assert (
            f["identical"] == f["ngram_identical"] == {"equal": f["prompts"], "total": f["prompts"], "unexplained": 0}
        )
        assert f["speedup"] == pytest.approx(f["tok_s"] / f["plain_tok_s"])
        assert len(f["conditional_acceptance"]) == len(f["survival"]) == len(f["reached"]) == 4
        assert f["survival"][1] == pytest.approx(f["conditional_acceptance"][0] * f["conditional_acceptance"][1])
        assert (f["intervals"]["tau"] is None) == (f["prompts"] == 2), "two prompts say nothing of spread"
        assert 0 <= f["repeat_share"] <= 1
        assert {"tau_without_repeats", "ngram_tau", "ngram_speedup"} <= f.keys()
        assert f["too_few_rounds"] == [n < 200 for n in f["reached"]]
    low, high = figures["intervals"]["tau"]
    assert low <= figures["tau"] <= high
    for key in ("drafted", "accepted", "rounds", "prompts", "tokens"):
        assert figures[key] == sum(f[key] for f in domains.values())
    assert figures["macro_tau"] == pytest.approx((domains["gsm"]["tau"] + domains["code"]["tau"]) / 2)
    assert {"target", "drafter", "dtype", "sampling", "seed", "machine"} <= figures.keys()
    for word in ("gsm", "code", "all", f"{figures['tau']:.2f}", f"{figures['macro_tau']:.2f}"):
        assert word in table


def test_eval_says_who_drafted(evaluated: Callable[..., Any]) -> None:
    both, alone = evaluated()[0], evaluated("--no-lookup")[0]
    assert (both["lookup"], alone["lookup"]) == (True, False)
    for figures in (both, alone):
        sources = figures["sources"]
        nobodys = figures["rounds"] - sum(each["rounds"] for each in sources.values())
        assert 0 <= nobodys <= figures["prompts"], "an answer's last round may have no room for a draft"
        assert figures["reached"][0] <= sources["drafter"]["rounds"]
    assert both["sources"]["lookup"]["rounds"] > 0 == alone["sources"]["lookup"]["rounds"]


def test_eval_verifies_every_draft_unless_it_is_told_to_plan(evaluated: Callable[..., Any]) -> None:
    (whole, said), (planned, silent) = evaluated(), evaluated("--planned")
    assert (whole["planned"], planned["planned"]) == (False, True)
    assert "--planned judges the speed" in said and "--planned" not in silent
    assert len(planned["round_ms"]) == 5 and planned["round_ms"] == sorted(planned["round_ms"])
    assert whole["verified"] > 0.8 * whole["drafted"], "all but those that the end of an answer has no room for"
    assert planned["identical"] == whole["identical"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_eval_judges_confidence_in_rounds_that_verified_a_whole_block(
    evaluated: Callable[..., Any], temperature: int
) -> None:
    figures, table = evaluated("--temperature", temperature)
    for f in (figures, *figures["domains"].values()):
        found = f["confidence"]
        # Fewer than were drafted by the drafter: an answer's last ones had no room, or a stop id among them.
        assert 0 < f["sources"]["drafter"]["rounds"] - found["rounds"] <= 4 * f["prompts"]
        rate = np.array(f["survival"])
        for key in ("ece", "perfect_ece", "brier", "auc", "oracle_auc", "constant_brier"):
            assert len(found[key]) == 4
        assert all(0 <= error <= 1 for error in found["ece"] + found["perfect_ece"] + found["brier"])
        assert found["constant_brier"] == pytest.approx(rate * (1 - rate), abs=0.06), "of nearly the same rounds"
        assert temperature or found["oracle_auc"][0] == 1.0, "a greedy draft stands or does not"
        assert found["map"] is None and found["as_trained"]["brier"] != found["brier"], "tilted, as plans read it"
    parts = [f["confidence"]["rounds"] for f in figures["domains"].values()]
    assert figures["confidence"]["rounds"] == sum(parts)
    assert f"confidence in {sum(parts)} whole rounds, as it was trained" in table


@pytest.mark.parametrize("options", [[], ["--temperature", 1, "--coupled"]], ids=["greedy", "coupled"])
def test_control_eval_fails_where_a_text_was_changed(
    cli: Cli,
    tiny: list[object],
    prompts_file: PromptsFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
) -> None:
    def gullible(own: Sequence[int], tokens: Sequence[list[int]]) -> list[Verdict]:
        ends = accumulate(len(drafted) + 1 for drafted in tokens)
        return [Verdict(len(d), own[end - 1]) for d, end in zip(tokens, ends, strict=True)]

    monkeypatch.setattr("dspark.decoding.sampler._while_equal", gullible)
    out, prompts = tmp_path / "eval.json", prompts_file("p.jsonl", "abc", "def f")
    line = ["eval", "--domain", f"[/b]={prompts}", "--max-tokens", 32, "--json", out, *tiny]
    outcome = cli(*line, *options)
    assert outcome.code == 1, outcome.err
    figures = read(out)
    assert figures["identical"]["unexplained"] > 0
    assert max(figures["identical_gaps"]) > 1e-4
    assert "differ from plain's by more than rounding explains" in outcome.out
    assert "[/b]" in outcome.out, "a domain's name is no markup"


def test_eval_with_sampling_claims_no_identity(evaluated: Callable[..., Any]) -> None:
    figures, _ = evaluated("--temperature", 1, "--limit", 1)
    assert "identical" not in figures
    assert figures["drafted"] > 0
    assert figures["domains"]["gsm"]["intervals"]["tau"] is None  # one prompt says nothing about spread


def test_eval_of_coupled_sampling_finds_the_same_texts(evaluated: Callable[..., Any]) -> None:
    figures, _ = evaluated("--temperature", 1, "--top-p", 0.9, "--coupled")
    assert figures["coupled"] and 0 < figures["accepted"] < figures["drafted"]
    same = {"equal": figures["prompts"], "total": figures["prompts"], "unexplained": 0}
    assert figures["identical"] == figures["ngram_identical"] == same


def test_eval_of_single_tokens_has_no_tau(evaluated: Callable[..., Any]) -> None:
    figures, _ = evaluated("--max-tokens", 1)
    assert figures["rounds"] == 0
    assert figures["tau"] is figures["macro_tau"] is figures["tau_without_repeats"] is None


def test_profile_writes_a_cost_model_that_reads_again(cli: Cli, tiny: list[object], tmp_path: Path) -> None:
    out, kept = tmp_path / "profile.json", tmp_path / "cost.json"
    done = cli(
        "profile",
        *tiny,
        "--requests",
        4,
        "--context",
        32,
        "--json",
        out,
        "--out",
        kept,
        "--plot",
        tmp_path / "cost.svg",
    )
    assert done.code == 0, done.err
    figures = read(out)
    assert figures["batch_tokens"] == [1, 2, 4, 8, 16] and figures["requests"] == [1, 2, 4]
    for name, count in (("step_ms", 5), ("draft_ms", 3)):
        assert len(figures[name]) == count and figures[name] == sorted(figures[name])
    assert (tmp_path / "cost.svg").read_text().startswith("<?xml")
    assert CostModel.of(read(kept), "cost.json") == CostModel.of(figures["model"], "profile.json")
    fitted = [each["fitted"] for each in figures["timed"]]
    assert sum(fitted) == figures["steps"] and not all(fitted)
    assert all(each["measured_ms"] > 0 and each["foretold_ms"] > 0 for each in figures["timed"])
    refused = cli("profile", *tiny, "--memory-gb", 1e-9)
    assert refused.code == 2 and "no room for the caches of 64 requests" in refused.err


def test_calibration_is_kept_by_sampling_and_used(
    cli: Cli, tiny: list[object], tiny_drafter: Path, prompts_file: PromptsFile, tmp_path: Path
) -> None:
    drafter = tmp_path / "drafter"
    shutil.copytree(tiny_drafter, drafter)
    pair = [drafter if word == tiny_drafter else word for word in tiny]
    prompts = prompts_file("p.jsonl", *(f"{a}{b}" for a in "abcd" for b in "xyz"))
    out, others = tmp_path / "calibrate.json", prompts_file("q.jsonl", "zx", "yw", "xv")
    for more in ([], ["--temperature", 1, "--map", "platt"], ["--temperature", 0.5, "--judge", others]):
        line = ["calibrate", *pair, "--prompts", prompts, "--max-tokens", 60, "--slots", 4, *more]
        done = cli(*line, "--json", out, "--rounds", tmp_path / "rounds.npz", "--plots", tmp_path / "plots")
        assert done.code == 0, done.err
        assert "nan" not in done.out
        figures = read(out)
        assert figures["rounds"] > figures["judged_rounds"] > 10
        assert figures["dtype"] == "float32" and figures["machine"]["software"] and figures["target"]
        kept, judges = Recorded.load(tmp_path / "rounds.npz")
        assert kept.outcomes.logits.shape == kept.oracle.shape == (figures["rounds"], 4)
        assert judges.sum() == figures["judged_rounds"]
        assert not set(kept.prompt[judges]) & set(kept.prompt[~judges])
        assert len(figures["temperatures"]) == 4 and figures["chosen"]["kind"] in figures["maps"]
        for name in ("before", "after", "constant", "oracle"):
            assert len(figures[name]["ece"]) == len(figures[name]["brier"]) == len(figures[name]["auc"]) == 4
            assert all(0 <= each <= 1 for each in figures[name]["brier"])
        assert figures["after"] == figures["maps"]["temperatures"]
        assert len(figures["tilted"]["brier"]) == 4 and figures["tilted"]["brier"] != figures["chosen"]["brier"]
        assert more or figures["oracle"]["brier"][0] == 0, "a greedy draft stands or does not"
        assert {each.name for each in (tmp_path / "plots").iterdir()} == {"reliability.svg", "thresholds.svg"}
        swept = figures["thresholds"]["chosen"]
        assert swept["verified"][0] == 4 and swept["verified"] == sorted(swept["verified"], reverse=True)
        assert len(figures["reliability"]["before"]) == 4
        assert list(figures["domains"]) == (["q"] if "--judge" in more else [])
    assert figures["domains"]["q"]["judged_rounds"] == figures["judged_rounds"]
    found = read_calibrations(drafter, 4)
    assert set(found.maps) == {Sampling(), Sampling(1.0), Sampling(0.5)}
    assert isinstance(found.of(Sampling(0.9)), Platt) and not isinstance(found.of(Sampling()), Temperatures)
    decoder = load_pair(str(pair[1]), str(drafter)).decoder
    assert decoder.greedy.calibrations == decoder.sampled.calibrations == found
    shares = found.survival[Sampling(1.0)]
    assert len(shares) == 4 and sorted(shares, reverse=True) == list(shares)
    assert set(decoder.sampled.special) == {Sampling(1.0), Sampling(0.5)}
    (drafter / CALIBRATION).write_text('{"regimes": [{"map": {}}]}')
    refused = cli("generate", "abc", *pair)
    assert refused.code == 2 and f"{CALIBRATION} holds no confidence maps" in refused.err
    assert cli("calibrate", *pair, "--prompts", prompts, "--map", "guess").code == 2
    overlap = cli("calibrate", *pair, "--prompts", others, "--judge", prompts_file("r.jsonl", "yw", "new"))
    assert overlap.code == 2 and "1 prompts of --judge are among --prompts" in overlap.err
    again = cli("calibrate", *pair, "--prompts", prompts, "--max-tokens", 60)
    assert again.code == 0 and "replaced: " in again.out and set(read_calibrations(drafter, 4).maps) == {Sampling()}


def test_regeneration_goes_on_where_it_was_killed(
    cli: Cli, tiny_target: Path, prompts_file: PromptsFile, tmp_path: Path
) -> None:
    prompts = prompts_file("p.jsonl", *(f"question {i}" for i in range(6)))
    line = ["data", "regenerate", "--prompts", prompts, "--target", tiny_target, "--dtype", "float32"]
    line += ["--max-tokens", 12, "--slots", 2, "--seed", 7, "--json", tmp_path / "r.json", "--out"]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert cli(*line, whole).code == 0
    assert read(tmp_path / "r.json")["responses"] == 6
    lines = whole.read_bytes().splitlines(keepends=True)
    killed.write_bytes(b"".join(lines[:2]) + lines[2][:25])
    assert cli(*line, killed).code == 0
    figures = read(tmp_path / "r.json")
    assert (figures["prompts"], figures["already_done"], figures["responses"]) == (6, 2, 4)
    assert figures["tok_s"] > 0
    assert sorted(killed.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    row = json.loads(lines[0])
    recommended = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert row["sampling"] == recommended
    assert figures["tokens"] == sum(
        len(json.loads(text)["output_ids"]) for text in killed.read_bytes().splitlines()[2:]
    )


def test_servers_that_run_the_target_can_answer_instead(
    cli: Cli, tiny_target: Path, prompts_file: PromptsFile, tmp_path: Path
) -> None:
    prompts = prompts_file("p.jsonl", *(f"question {i}" for i in range(6)))
    line = ["data", "regenerate", "--prompts", prompts, "--target", tiny_target, "--dtype", "float32"]
    line += ["--max-tokens", 12, "--temperature", 0, "--json", tmp_path / "r.json", "--out"]
    embedded, remote = tmp_path / "embedded.jsonl", tmp_path / "remote.jsonl"
    assert cli(*line, embedded).code == 0
    target = load_target(str(tiny_target), "float32", "cpu")
    with serving(Server(target, faults=[None, 400])) as first, serving(Server(target)) as second:
        line += [remote, "--require-token-ids", "--endpoint", first.url, second.url]
        outcome = cli(*line)
        failed = read(tmp_path / "r.json")["failures"]
        assert outcome.code == 1 and len(failed) == 1 and f"{failed[0]['id']}, turn 0: {first.url}" in outcome.out
        assert cli(*line).code == 0
    assert read(tmp_path / "r.json")["responses"] == 1
    assert sorted(remote.read_bytes().splitlines()) == sorted(embedded.read_bytes().splitlines())


def test_regeneration_drops_prompts_of_the_evaluation(
    cli: Cli, tiny_target: Path, prompts_file: PromptsFile, tmp_path: Path
) -> None:
    prompts, others = prompts_file("p.jsonl", "What is it?", "Other", "Third"), prompts_file("e.jsonl", "what IS it")
    line = ["data", "regenerate", "--prompts", prompts, "--against", others, "--target", tiny_target, "--limit", 1]
    outcome = cli(*line, "--out", tmp_path / "out.jsonl", "--max-tokens", 4)
    assert "1 of 3 prompts overlap" in outcome.out
    rows = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["p-1"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_whole(cli: Cli, tmp_path: Path, path: Path) -> None:
    (tmp_path / "responses.jsonl").write_text("{}\n", encoding="utf-8")
    out = tmp_path / "dry.json"
    outcome = cli(
        "train", "--recipe", path.stem, "--set", "trainer.steps=3", "trainer.seed=4", "--dry-run", "--json", out
    )
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "cache").exists()
    (tmp_path / "printed.yaml").write_text(outcome.out, encoding="utf-8")
    resolved = load_settings(Recipe, tmp_path / "printed.yaml")
    assert (resolved.trainer.steps, resolved.trainer.seed) == (3, 4)
    assert resolved == load_settings(Recipe, path, ["trainer.steps=3", "trainer.seed=4"])
    assert Recipe.model_validate(read(out)["recipe"]) == resolved
