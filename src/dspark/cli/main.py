"""The program `dspark`: its verbs, and what happens when one of them fails.

Exit codes: 0 success; 2 a user's error, one line; 1 a failure of ours, one line; 130 interrupted. Verbs
import PyTorch inside their functions, so that help and mistakes in the command line cost nothing.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

import dspark
from dspark.cli.arguments import spread
from dspark.cli.bench import bench
from dspark.cli.calibrate import calibrate
from dspark.cli.demo import demo
from dspark.cli.eval import evaluate
from dspark.cli.generate import generate
from dspark.cli.pack import pack
from dspark.cli.profile import profile
from dspark.cli.regenerate import regenerate
from dspark.cli.report import report
from dspark.cli.serve import serve
from dspark.cli.topics import ByTopic
from dspark.cli.train import train
from dspark.foundation.errors import UserError

INTERRUPTED = 130
TRACEBACK = "DSPARK_TRACEBACK"

# Plain help: rich's boxes hide option names when the terminal is narrow.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data = typer.Typer(rich_markup_mode=None, help="Make what drafters are trained on.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dspark {dspark.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Confidence-scheduled speculative decoding: drafters, exact verification, training and evaluation."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("demo")(demo)
app.command("generate")(generate)
app.command("eval")(evaluate)
app.command("train")(train)
app.command("calibrate")(calibrate)
app.command("profile")(profile)
app.command("bench")(bench)
app.command("report")(report)
app.command("serve", cls=ByTopic)(serve)
data.command("regenerate")(regenerate)
data.command("pack")(pack)
app.add_typer(data, name="data")


@data.callback()
def _data() -> None:
    # With a callback Typer keeps a group of a single verb a group.
    pass


def run() -> None:
    """Entry point of the program."""
    for stream in (sys.stdout, sys.stderr):  # a model may say what a terminal's encoding can't
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors end here, in one line."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command = typer.main.get_command(app)
            code = command.main(spread(arguments), prog_name="dspark", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:  # the one place where every error ends
            return _report(error)
    if code == INTERRUPTED:
        _say("interrupted")
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    """Say what went wrong in one line and choose the exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    # Typer's own errors: the class moves between modules from version to version, this method does not.
    explain = getattr(error, "format_message", None)
    if isinstance(error, UserError):
        _say(str(error))
        return 2
    if explain is not None:
        path = getattr(getattr(error, "ctx", None), "command_path", "dspark")
        _say(f"{explain().rstrip('. ')}; see `{path} --help`")
        return 2
    _say(f"failed: {type(error).__name__}: {error} (set {TRACEBACK}=1 to see where)")
    return 1


def _say(text: str) -> None:
    print(f"dspark: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")
