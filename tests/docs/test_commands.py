"""Every command line of the documentation is one that the program understands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from dspark.cli.arguments import spread
from dspark.cli.main import app
from pages import DOCUMENTS, commands, text_of

PROGRAM: Any = typer.main.get_command(app)
LINES = [(document, line) for document in DOCUMENTS for line in commands(document)]


def parse(command: Any, name: str, arguments: Sequence[str], parent: Any = None) -> str:
    """The verb, once all of its words were understood; nothing is run."""
    context = command.make_context(name, list(arguments), parent=parent)
    if not hasattr(command, "resolve_command"):
        return name
    verb, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return parse(found, verb, rest, context)


@pytest.mark.parametrize(("document", "line"), LINES, ids=str)
def test_a_command_line_parses(document: str, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # options that name a folder may make it
    if line[-1] != "--help":
        parse(PROGRAM, "dspark", spread(line))


def test_every_verb_is_shown() -> None:
    shown = {" ".join(line[:2] if line[0] == "data" else line[:1]) for _, line in LINES}
    verbs = set(PROGRAM.commands) - {"data"} | {f"data {verb}" for verb in PROGRAM.commands["data"].commands}
    assert shown - {"--help"} >= verbs - {"demo"}  # which is `make demo` there


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("guess", "guess"),
        ("eval --guess", "--guess"),
        ("data pack --out answers.xz", "--responses"),
        ("bench --repeats few", "'--repeats'"),
        ("train --recipe a b", "unexpected extra argument"),
    ],
)
def test_control_a_wrong_line_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(Exception) as refused:  # its class moves between modules from version to version
        parse(PROGRAM, "dspark", spread(line.split()))
    assert complaint in refused.value.format_message()  # type: ignore[attr-defined]


PROSE = [each for each in DOCUMENTS if "lab_log" not in each and "decisions" not in each and "results" not in each]


@pytest.mark.parametrize("document", PROSE)
def test_options_that_are_explained_exist(document: str) -> None:
    known = {
        option for verb in leaves(PROGRAM) for each in verb.params for option in [*each.opts, *each.secondary_opts]
    }
    named = {
        option for code in re.findall(r"`([^`\n]+)`", text_of(document)) for option in re.findall(r"--[\w-]+", code)
    }
    others = {"--count", "--like", "--index-url"}  # of corpus/own_prompts.py and of pip
    assert not named - known - others - {"--help"}


def leaves(command: Any) -> list[Any]:
    """All verbs."""
    inner = getattr(command, "commands", {}).values()
    return [leaf for each in inner for leaf in leaves(each)] or [command]
