"""Training prompts that repeat an evaluation prompt are dropped; a shared instruction is no repetition."""

from __future__ import annotations

from dspark.data.overlap import without_overlap
from dspark.data.prompts import Prompt

INSTRUCTION = "Please reason step by step, and put your final answer within the box."


def test_training_prompts_that_overlap_evaluation_are_dropped() -> None:
    words = [f"word{i}" for i in range(30)]
    evaluation = [Prompt("e", (" ".join(words[:20]),)), Prompt("short", ("What is 2+2?",))]
    clean = Prompt("clean", (" ".join(words[8:20] + ["other"] + words[20:]),))  # twelve words in a row, not thirteen
    copied = Prompt("copied", ("so " + ", ".join(words[7:20]).upper() + "!",))
    same = Prompt("same", ("what is 2 + 2",))
    later = Prompt("later", ("hello", " ".join(words[:13])))
    assert without_overlap([clean, copied, same, later], evaluation) == [clean]


def question(name: str, number: int, length: int = 16) -> str:
    return " ".join(f"{name}{number}w{i}" for i in range(length)) + f" in total? {INSTRUCTION}"


def test_an_instruction_that_many_prompts_share_is_no_overlap() -> None:
    training = [Prompt(f"t{i}", (question("t", i),)) for i in range(40)]
    evaluation = [Prompt(f"e{i}", (question("e", i),)) for i in range(40)]
    assert without_overlap(training, evaluation) == training


def test_content_beside_a_shared_instruction_still_counts() -> None:
    training = [Prompt(f"t{i}", (question("t", i),)) for i in range(40)]
    copied = Prompt("copied", (f"Now: {question('e', 7, 14)}",))  # 13 of its words and two of the question's
    identical = Prompt("identical", (INSTRUCTION,))
    evaluation = [Prompt(f"e{i}", (question("e", i, 14),)) for i in range(40)] + [Prompt("bare", (INSTRUCTION,))]
    assert without_overlap([*training, copied, identical], evaluation) == training


def test_a_run_of_words_that_few_prompts_share_is_content() -> None:
    training = [Prompt(f"t{i}", (question("t", i),)) for i in range(15)]
    evaluation = [Prompt("e", (question("e", 0),))]
    assert without_overlap(training, evaluation) == []  # 14 words in a row, in 16 prompts: too few to be a habit
