"""Regeneration survives a kill at any moment: the same answers, none lost, none twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspark.data.answering import EmbeddedAnswerer
from dspark.data.prompts import Prompt
from dspark.data.regenerate import Asking, Regenerated, regenerate
from dspark.data.responses import Response, read_responses
from dspark.decoding.engine import Limits
from dspark.foundation.errors import UserError
from dspark.speculation.sampling import Sampling
from tiny import tiny_target

PROMPTS = [Prompt(f"p{i}", ("abcdefghij"[: 1 + i % 7], "more", "and?")[: 1 + i % 3]) for i in range(12)]
TURNS = sum(len(prompt.turns) for prompt in PROMPTS)
TARGET = tiny_target(sharpness=2.0)


def answer(out: Path, prompts: list[Prompt] = PROMPTS, temperature: float = 0.8, slots: int = 3) -> Regenerated:
    asking = Asking("tiny", TARGET.chat, Sampling(temperature, top_p=0.9), max_tokens=10, max_prompt=40, seed=1)
    return regenerate(EmbeddedAnswerer(TARGET, Limits(slots, slots * 64)), prompts, out, asking)


def rows(path: Path) -> dict[tuple[str, int], str]:
    lines = path.read_text().splitlines()
    found = {(row["id"], row["turn"]): line for line in lines if (row := json.loads(line))}
    assert len(found) == len(lines), "an id was answered twice"
    return found


def test_rows_hold_what_was_rendered_and_sampled(tmp_path: Path) -> None:
    result = answer(tmp_path / "r.jsonl")
    responses = list(read_responses(tmp_path / "r.jsonl"))
    assert (result.prompts, result.responses) == (12, TURNS)
    assert result.tokens == sum(len(r.output_ids) for r in responses)
    for response in responses:
        prompt = next(p for p in PROMPTS if p.id == response.id)
        assert response.prompt_ids == TARGET.chat.prompt_ids(response.messages)
        assert [m["content"] for m in response.messages[::2]] == list(prompt.turns[: response.turn + 1])
        assert response.sampling == {"temperature": 0.8, "top_k": 0, "top_p": 0.9, "min_p": 0.0}
        assert (response.finish_reason == "stop") == (response.output_ids[-1] in TARGET.stop_ids)


def test_a_later_turn_is_asked_with_the_earlier_answers(tmp_path: Path) -> None:
    answer(tmp_path / "r.jsonl")
    found: dict[tuple[str, int], Response] = {(r.id, r.turn): r for r in read_responses(tmp_path / "r.jsonl")}
    assert {key for key in found} == {(p.id, turn) for p in PROMPTS for turn in range(len(p.turns))}
    for (identifier, turn), response in found.items():
        before = [TARGET.chat.decode(found[identifier, t].output_ids) for t in range(turn)]
        assert [m["content"] for m in response.messages[1::2]] == before


@pytest.mark.parametrize("kept", [0, 1, 1000, 2000, 5000])
def test_killed_at_any_moment_the_rest_is_the_same(tmp_path: Path, kept: int) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    answer(whole)
    killed.write_bytes(whole.read_bytes()[:kept])
    answer(killed, slots=5)  # other neighbours, other order
    assert rows(killed) == rows(whole)
    again = answer(killed)
    assert (again.responses, again.already_done) == (0, TURNS)


def test_answers_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    answer(tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="holds answers of tiny with .*0.8"):
        answer(tmp_path / "r.jsonl", temperature=0.3)


def test_answers_from_before_a_setting_existed_count_as_without_it(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    answer(path)
    path.write_text(path.read_text().replace(', "min_p": 0.0', ""))
    assert "min_p" not in path.read_text()
    assert (again := answer(path)).already_done == TURNS and again.responses == 0
    path.write_text(path.read_text().replace('"top_k": 0', '"unheard_of": 0'))
    with pytest.raises(UserError, match="unheard_of"):
        answer(path)


def test_a_prompt_that_is_too_long_is_counted_not_lost_in_silence(tmp_path: Path) -> None:
    result = answer(tmp_path / "r.jsonl", [*PROMPTS, Prompt("long", ("x" * 50, "y")), Prompt("later", ("y", "x" * 50))])
    assert (result.responses, result.too_long) == (TURNS + 1, 3)
