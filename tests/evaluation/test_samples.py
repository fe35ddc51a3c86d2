"""The folder of samples: rows that come back as they were, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dspark.evaluation.evaluate import Heard, Run, Task, Trial
from dspark.evaluation.identity import Comparison
from dspark.evaluation.samples import RUN, SAMPLES, Samples, row_of, trial_of
from dspark.foundation.artifacts import json_text
from dspark.foundation.errors import UserError
from dspark.speculation.acceptance import Round

SETTINGS = {"max_tokens": 32, "sampling": {"temperature": 0.0, "top_k": 0}, "drafters": {"mine": {"config.json": "ab"}}}


def trial(name: str = "a", turn: int = 0) -> Trial:
    drafted = (
        Round(0, (5,), 0, 0, 0, None),
        Round(1, (6, 7, 8), 4, 4, 2, None),
        Round(2, (9,), 7, 3, 0, None, "lookup"),
        Round(3, (2,), 4, 1, 0, "stop"),
    )
    plain = tuple(Round(i, (token,), 0, 0, 0, "stop" if token == 2 else None) for i, token in enumerate((5, 6, 7, 2)))
    runs = {"plain": Run(plain, 0.5), "mine": Run(drafted, 0.25), "ngram": Run((Round(0, (2,), 0, 0, 0, "stop"),), 0.1)}
    comparisons = {"mine": Comparison(3, 0.5, 1e-4), "ngram": Comparison()}
    heard = {"mine": Heard([[0.5, -1.25]], [[2.0, 3.0]], [[0.25, math.nan]], [1])}
    return Trial(Task("chat", name, [1, 2], 7, "mt-bench", turn), runs, comparisons, heard)


def test_a_row_comes_back_as_it_was() -> None:
    row = json.loads(json_text(row_of(trial())))
    found = trial_of(row, "here")
    assert found.task == trial().task and found.comparisons == trial().comparisons
    assert {way: (run.rounds, run.seconds) for way, run in found.runs.items()} == {
        way: (run.rounds, run.seconds) for way, run in trial().runs.items()
    }
    (known, unknown), heard = found.heard["mine"].oracle[0], found.heard["mine"]
    assert known == 0.25 and math.isnan(unknown)
    assert (heard.logits, heard.peaks, heard.accepted) == ([[0.5, -1.25]], [[2.0, 3.0]], [1])


@pytest.mark.parametrize(
    "change",
    [
        {"runs": None},
        {"turn": ...},
        {"comparisons": {"mine": {"place": 3}}},
        {"heard": {"mine": {"logits": []}}},
        {"runs": {"plain": row_of(trial())["runs"]["plain"] | {"gained": [1, 1, 1, 2]}}},
        {"runs": {"plain": row_of(trial())["runs"]["plain"] | {"accepted": [0]}}},
        {"runs": {"plain": {}}},
    ],
    ids=["no runs", "no turn", "odd comparison", "half heard", "other tokens", "short column", "empty run"],
)
def test_a_row_that_is_none_is_named(change: dict[str, Any]) -> None:
    row = {name: value for name, value in (row_of(trial()) | change).items() if value is not ...}
    with pytest.raises(
        UserError, match=r"samples.jsonl, line 3: is no sample of an evaluation \(.+\); remove that line"
    ):
        trial_of(row, "samples.jsonl, line 3")


def test_what_was_kept_is_found_again_and_half_a_row_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Samples(folder, SETTINGS) as samples:
        assert len(samples) == 0 and samples.kept(trial().task) is None
        samples.keep(trial())
        samples.keep(trial(turn=1))
    whole = (folder / SAMPLES).read_bytes()
    (folder / SAMPLES).write_bytes(whole + whole[:200])
    with Samples(folder, SETTINGS) as samples:
        assert len(samples) == 2
        found = samples.kept(trial(turn=1).task)
        assert found is not None and found.task.turn == 1
        assert samples.kept(trial("b").task) is None
        samples.keep(trial("b"))
    rows = (folder / SAMPLES).read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["a", "a", "b"]


def test_samples_of_other_settings_or_prompts_are_refused(tmp_path: Path) -> None:
    with Samples(tmp_path, SETTINGS) as samples:
        samples.keep(trial())
        with pytest.raises(UserError, match="another writer"):
            Samples(tmp_path, SETTINGS)
    other = SETTINGS | {"max_tokens": 64, "sampling": {"temperature": 1.0, "top_k": 0}}
    told = "max_tokens is 32 there and 64 here, sampling.temperature is 0.0 there and 1.0 here; choose another folder"
    with pytest.raises(UserError, match=re.escape(told)):
        Samples(tmp_path, other)
    with pytest.raises(UserError, match=re.escape("drafters.mine.config.json is 'ab' there and 'cd' here")):
        Samples(tmp_path, SETTINGS | {"drafters": {"mine": {"config.json": "cd"}}})
    with Samples(tmp_path, SETTINGS) as samples, pytest.raises(UserError, match=r"'a' \(turn 0 of mt-bench\)"):
        samples.kept(Task("chat", "a", [1, 2, 3], 7, "mt-bench"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; expected a folder"):
        Samples(tmp_path / "file", SETTINGS)
    (tmp_path / SAMPLES).write_text(json.dumps(row_of(trial()), default=str) + "\n")
    with pytest.raises(UserError, match=f"has {SAMPLES} but no {RUN}"):
        Samples(tmp_path, SETTINGS)
    (tmp_path / RUN).write_text(json.dumps(SETTINGS))
    (tmp_path / SAMPLES).write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="line 1: is no sample"):
        Samples(tmp_path, SETTINGS)
    # What stopped it leaves the file free.
    (tmp_path / SAMPLES).write_text("")
    with Samples(tmp_path, SETTINGS) as samples:
        assert len(samples) == 0
