"""The examples of the documentation, run as they stand but for the port, the model and where they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_server import Served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
README = re.findall(r"^    (curl .*?)\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def here(example: str, server: Served) -> str:
    """The example against this server."""
    assert "http://127.0.0.1:8000" in example
    return example.replace("http://127.0.0.1:8000", server.url).replace("smollm2-135m", "tiny")


def test_there_are_examples() -> None:
    assert (len(PYTHON), len(SHELL), len(README)) == (4, 1, 1)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_examples_run(server: Served, number: int) -> None:
    code = here(PYTHON[number], server)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()


@pytest.mark.parametrize("number", range(len(SHELL + README)))
def test_curl_examples_run(server: Served, number: int) -> None:
    command = here((SHELL + README)[number], server)
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant", done.stderr.decode()
