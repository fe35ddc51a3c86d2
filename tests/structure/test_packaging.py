"""What an installation promises: light to import, no path or index of one machine, CI as by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_constraints_are_plain_pins_that_fit_any_machine(pins: dict[str, Requirement]) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "\ntorch==2.13.0\n" in text
    for unwanted in ("+cpu", "nvidia", "@ file", "/", "--", "triton"):
        assert unwanted not in text
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())


def test_every_dependency_is_pinned_and_allows_its_pin(project: dict[str, Any], pins: dict[str, Requirement]) -> None:
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + extras["dev"] + extras["docs"]
    for requirement in map(Requirement, wanted):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), requirement


def test_torch_has_a_floor_and_no_ceiling(project: dict[str, Any]) -> None:
    torch = next(r for r in map(Requirement, project["project"]["dependencies"]) if r.name == "torch")
    assert str(torch.specifier) == ">=2.9"


def test_no_index_and_no_place_of_one_machine_is_named() -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for unwanted in (
            "://",
            "pypi.org",
            "pythonhosted",
            "download.pytorch",
            "--index",
            "--extra-index",
            "--find-links",
        ):
            assert unwanted not in text, (name, unwanted)
        assert not re.search(r"(?<![\w.$])/(home|root|opt|work|tmp|Users)\b", text), name


def test_make_setup_is_reproducible_and_stamped_last() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = text.partition("$(STAMP): pyproject.toml constraints.txt\n")[2].partition("\n\n")[0].splitlines()
    commands = [line.strip() for line in recipe]
    assert commands == [
        "$(PYTHON) -m venv .venv",
        "$(BIN)/python -m pip install -c constraints.txt $(TORCH_ARGS) torch",
        "$(BIN)/python -m pip install -c constraints.txt -e '.[dev,docs]'",
        "touch $(STAMP)",
    ]


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'typer', 'yaml'}"
    code = f"import sys, dspark; print(sorted({heavy} & set(sys.modules)), dspark.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[] 0.1.0\n"


def test_naming_a_device_or_a_file_does_not_load_torch() -> None:
    rooms = ("artifacts", "cache", "devices", "errors", "identity", "progress", "records", "settings")
    imports = ", ".join(f"dspark.foundation.{room}" for room in rooms)
    code = f"import sys, {imports}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_a_warning_of_ours_is_an_error_and_others_are_not() -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="dspark.speculation.loop")
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="transformers.models")


def test_ci_runs_make_check_from_an_empty_environment() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    assert text.index("rm -rf .venv") < text.index("\nmake")
    # "check" ends with the tests, and nothing follows it: pytest's last line is the last line.
    assert text.splitlines()[-1].endswith(" check")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ncheck: lint types docs test\n" in makefile
    assert "$(BIN)/mkdocs build --strict\n" in makefile  # without --quiet, which hides the warnings that it counts


def test_ignored_patterns_hide_no_source() -> None:
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        name = line.strip("/*")
        assert line.startswith("/") or not any((ROOT / "src").rglob(name)) or name in {"__pycache__", ".mypy_cache"}, (
            line
        )


def built(kind: str, folder: Path) -> Path:
    """A wheel or an sdist of the working tree, by the backend itself: no network, no environment of its own."""
    pytest.importorskip("hatchling", reason="`make setup` installs it")
    code = "import sys; from hatchling import build; print(getattr(build, f'build_{sys.argv[1]}')(sys.argv[2]))"
    command = [sys.executable, "-c", code, kind, str(folder)]
    return folder / subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def shipped() -> set[str]:
    """Every file of the package, from the top of an installation."""
    files = (each for each in (ROOT / "src" / "dspark").rglob("*") if each.is_file())
    left = ("__pycache__", ".mypy_cache")
    return {str(each.relative_to(ROOT / "src")) for each in files if not set(left) & {*each.parts}}


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "dspark = dspark.cli.main:run" in wheel.read(entry).decode()
    assert names == shipped()


def test_an_sdist_holds_what_its_tests_read(tmp_path: Path, project: dict[str, Any]) -> None:
    with tarfile.open(built("sdist", tmp_path)) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {f"src/{name}" for name in shipped()} <= names
    wanted = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(each.startswith("/") for each in wanted), "a bare name is taken wherever it is found"
    assert {name.partition("/")[0] for name in names} == {
        *(each.split("/")[1] for each in wanted),
        *(".gitignore", "PKG-INFO", "pyproject.toml"),
    }


@pytest.mark.parametrize(
    "wanted",
    [
        "assets/demo/prompts.jsonl",
        "assets/demo/page.css",
        "assets/drafters/smollm2-135m/calibration.json",
        "assets/drafters/smollm2-135m/model.safetensors",
        "py.typed",
        "recipes/smollm2-135m.yaml",
        "serving/grafana.json",
        "serving/playground/index.html",
        "serving/playground/app.js",
    ],
)
def test_what_the_program_reads_lies_in_the_package_where_no_pattern_hides_it(wanted: str) -> None:
    file = ROOT / "src" / "dspark" / wanted
    assert file.is_file()
    for pattern in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        assert not file.relative_to(ROOT).match(pattern.strip("/")), pattern
    assert f"dspark/{wanted}" in shipped()


def test_the_package_holds_no_tests_and_no_answers() -> None:
    assert not [name for name in shipped() if Path(name).name.startswith(("test_", "conftest")) or name.endswith(".xz")]
