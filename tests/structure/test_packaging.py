"""What an installation promises: light to import, no path or index of one machine, CI as by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import warnings
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
