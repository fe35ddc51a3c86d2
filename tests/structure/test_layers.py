"""The shape of the source tree, held with ``ast``: imports point down, files and functions are small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "dspark"

# From the ground up. A room imports only from rooms below it; those of one level never meet.
LEVELS = (
    {"foundation"},
    {"kernels"},
    {"nn", "speculation"},
    {"targets", "drafters"},
    {"decoding"},
    {"data", "training", "calibration", "evaluation", "serving", "load"},
    {"report"},
    {"recipes"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ALLOWED_SIBLINGS = {("training", "data"), ("load", "serving")}

FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def room_of(path: Path, root: Path) -> str:
    """The room a file lies in; files at the top of the package belong to no room."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def imported_rooms(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of our own, at whatever depth; relative imports come as the room '.'."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "."
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dspark":
                yield node.lineno, parts[1] if len(parts) > 1 else ""


def import_complaints(path: Path, root: Path, tree: ast.AST) -> Iterator[str]:
    """Imports that do not point down."""
    room = room_of(path, root)
    # Of the files in no room, the package itself imports nothing, and `python -m dspark` is the command line.
    levels = LEVEL if room else {"__init__.py": -1, "__main__.py": len(LEVELS)}
    level = levels.get(room or path.name)
    if level is None:
        yield f"{path}: {room or path.name!r} is not a room of the house"
        return
    for line, other in imported_rooms(tree):
        if other == ".":
            yield f"{path}:{line}: relative import; write the full name"
        elif other in {room, "", "__version__"} or (room, other) in ALLOWED_SIBLINGS:
            continue
        elif other not in LEVEL:
            yield f"{path}:{line}: imports {other}, which is not a room of the house"
        elif LEVEL[other] >= level:
            yield f"{path}:{line}: {room} imports {other}, which is not below it"


def size_complaints(path: Path, text: str, functions: list[Function]) -> Iterator[str]:
    """Names that say nothing, files and functions that are too long."""
    if path.name in FORBIDDEN_NAMES:
        yield f"{path}: a file is named after one noun of the specification"
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"
    for function in functions:
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            where = f"{path}:{function.lineno}"
            yield f"{where}: {function.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def type_complaints(path: Path, functions: list[Function]) -> Iterator[str]:
    """Functions whose signature is not fully typed."""
    for function in functions:
        a = function.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        untyped = [x.arg for x in arguments if x.annotation is None and x.arg not in {"self", "cls"}]
        if untyped or function.returns is None:
            missing = ", ".join(untyped) or "its result"
            yield f"{path}:{function.lineno}: {function.name} lacks types for {missing}"


def complaints(root: Path) -> list[str]:
    """Everything that is wrong with the tree at ``root``."""
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        found += import_complaints(path, root, tree)
        found += size_complaints(path, text, functions)
        found += type_complaints(path, functions)
    return found


def test_the_house_stands() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > 10
    assert complaints(SOURCE) == []


LONG_FUNCTION = "def f() -> None:\n" + "    pass\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("speculation/x.py", "from dspark.targets.model import Model", "speculation imports targets"),
        ("speculation/x.py", "import dspark.cli.main", "speculation imports cli"),
        ("speculation/x.py", "from dspark.nn import ends", "speculation imports nn"),
        ("drafters/x.py", "from dspark import targets", "drafters imports targets"),
        (
            "drafters/x.py",
            "def f() -> None:\n    from dspark.targets import model",
            "drafters imports targets",
        ),
        ("drafters/deep/x.py", "import dspark.decoding", "drafters imports decoding"),
        ("data/x.py", "from dspark.training import trainer", "data imports training"),
        ("serving/x.py", "from dspark.load import traffic", "serving imports load"),
        ("evaluation/x.py", "from dspark.data import prompts", "evaluation imports data"),
        ("report/x.py", "if True:\n    import dspark.recipes", "report imports recipes"),
        ("nn/x.py", "from . import ends", "relative import"),
        ("nn/x.py", "from dspark.magic import wand", "magic, which is not a room"),
        ("magic/x.py", "", "'magic' is not a room"),
        ("magic.py", "", "'magic.py' is not a room"),
        ("__init__.py", "import dspark.foundation.errors", "imports foundation"),
        ("nn/utils.py", "", "one noun"),
        ("nn/common.py", "", "one noun"),
        ("nn/x.py", "\n" * (MAX_FILE_LINES + 1), "401 lines"),
        ("nn/x.py", LONG_FUNCTION, "f has 61 lines"),
        ("nn/x.py", "class A:\n    def f(self, x) -> None: ...", "f lacks types for x"),
        ("nn/x.py", "async def f(*rest: int, key) -> None: ...", "f lacks types for key"),
        ("nn/x.py", "def f(x: int): ...", "f lacks types for its result"),
    ],
)
def test_control_a_crooked_file_is_caught(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    found = complaints(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("training/x.py", "from dspark.data import prompts\nfrom dspark.decoding.batch import Batch"),
        ("load/x.py", "from dspark.serving import client\nimport torch, numpy"),
        ("cli/x.py", "from dspark import recipes, report, __version__\nfrom dspark.cli import options"),
        ("__main__.py", "from dspark.cli.main import run"),
        ("nn/x.py", "\n" * MAX_FILE_LINES),
        ("nn/x.py", LONG_FUNCTION.removesuffix("    pass\n")),
        ("nn/x.py", "class A:\n    @classmethod\n    def f(cls, *, x: int = 0) -> None: ..."),
    ],
)
def test_control_a_straight_file_is_left_alone(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    assert complaints(tmp_path) == []
