"""Records that may be published: what a verb's --json says, without paths of the machine and without false digits."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIGITS = 6  # of a number: more than any measurement has
RECORDED = "docs/results"  # in the repository: where records and their page go
_LONG = ("identical_gaps", "ngram_identical_gaps")  # an entry a text that differs; the record counts them as well


def portable(value: Any) -> Any:
    """The same with the last part of every path in its place, numbers of ``DIGITS`` digits, and without what is long
    and shown nowhere.
    """
    if isinstance(value, dict):
        return {portable(key): portable(each) for key, each in value.items() if key not in _LONG}
    if isinstance(value, list):
        return [portable(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return without_place(value) if isinstance(value, str) else value


def without_place(text: str) -> str:
    """The last part of a path; anything else as it is (a hub id, owner/name, is none)."""
    path = Path(text)
    return path.name if os.sep in text and (path.is_absolute() or path.exists()) else text


def provenance(line: Sequence[str], minutes: float, load: float, repository: Path) -> dict[str, Any]:
    """How, when and from what a record was made; ``load`` is that before the first of them, ``line`` a verb's words."""
    return {
        "command": " ".join(["dspark", *map(without_place, line)]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": round(minutes, 1),
        "load": round(load, 1),
        "commit": _commit(repository),
    }


def _commit(repository: Path) -> str | None:
    """Of the code that measured, "-dirty" where it was changed since, by more than records of measurements; None where
    there is no git.
    """
    git = ["git", "-C", str(repository)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", f":!{RECORDED}"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "-dirty" * bool(changed.returncode)
