"""The program around its verbs: help, versions, options with several values, failures, interrupts."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dspark.cli.arguments import spread
from tiny_pair import Cli

VERBS = {"demo", "generate", "eval", "train", "calibrate", "profile", "bench", "report", "serve", "data"}


def test_help_lists_the_verbs_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'rich'}"
    code = (
        "import sys; from dspark.cli.main import main; code = main(['--help'])\n"
        f"print(sorted({heavy} & set(sys.modules)), code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = result.stdout.partition("Commands:\n")[2]
    assert set(re.findall(r"^  (\w+)  ", commands, flags=re.MULTILINE)) == VERBS
    assert result.stdout.splitlines()[-1] == "[] 0"
    assert result.stderr == ""


@pytest.mark.parametrize("verb", [[verb] for verb in sorted(VERBS)] + [["data", "regenerate"]])
def test_every_verb_explains_itself(cli: Cli, verb: list[str]) -> None:
    outcome = cli(*verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"Usage: dspark {' '.join(verb)} ")
    assert not re.search("[│╭╰]", outcome.out)


def test_version_and_bare_call(cli: Cli) -> None:
    assert cli("--version").out == "dspark 0.1.0\n"
    assert cli().out == cli("--help").out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("eval --prompts a b --limit 1", "eval --prompts a --prompts b --limit 1"),
        ("eval --prompts=a b", "eval --prompts=a --prompts b"),
        ("eval --domain m=a b c=d e", "eval --domain m=a --domain m=b --domain c=d --domain c=e"),
        ("eval --domain=m=a b", "eval --domain=m=a --domain m=b"),
        ("eval --domain a", "eval --domain a"),
        ("eval --benchmark math mt-bench --out x", "eval --benchmark math --benchmark mt-bench --out x"),
        ("train --set a=1 b=-2 --resume", "train --set a=1 --set b=-2 --resume"),
        ("generate x --seed 1", "generate x --seed 1"),
        ("eval --prompts", "eval --prompts"),
    ],
)
def test_options_with_several_values(line: str, expected: str) -> None:
    assert spread(line.split()) == expected.split()


@pytest.fixture
def broken_train(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[str]]:
    """A command line that gets as far as ``action``."""

    def arrange(action: Callable[[], None]) -> list[str]:
        def find_recipe(recipe: str) -> Path:
            action()
            raise AssertionError("the action must raise")

        monkeypatch.setattr("dspark.cli.train.find_recipe", find_recipe)
        return ["train", "--recipe", "x"]

    return arrange


def test_a_failure_of_ours_is_one_line_and_the_traceback_is_there_for_the_asking(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, broken_train: Callable[[Callable[[], None]], list[str]]
) -> None:
    def fail() -> None:
        raise KeyError("shape\nof things")

    line = broken_train(fail)
    outcome = cli(*line)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "KeyError" in outcome.err
    assert "DSPARK_TRACEBACK=1" in outcome.err
    monkeypatch.setenv("DSPARK_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in cli(*line).err


def test_an_interrupt_is_one_line(cli: Cli, broken_train: Callable[[Callable[[], None]], list[str]]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    outcome = cli(*broken_train(interrupt))
    assert (outcome.code, outcome.err) == (130, "dspark: interrupted\n")


def test_a_warning_is_one_plain_line(cli: Cli, broken_train: Callable[[Callable[[], None]], list[str]]) -> None:
    def warn() -> None:
        warnings.warn("this and\nthat", stacklevel=1)
        raise KeyboardInterrupt

    assert cli(*broken_train(warn)).err.splitlines()[0] == "dspark: warning: this and that"
