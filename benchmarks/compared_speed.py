"""How fast the drafters of a comparison are: measured speed-up, and what share of a round the sequential head takes.

Both are added to rows that are there, and both refuse a machine that does other work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sequential_head import round_times

from dspark.foundation.artifacts import json_text, read_json, write_atomic

Row = dict[str, Any]

BUSY = 0.5  # load of the last minute from which on nothing is timed
_SAMPLINGS = {"greedy": "0", "temperature 1": "1"}


def add_speed(rows: Sequence[Row], folders: Sequence[Path], options: Iterable[str]) -> None:
    """Speed-up over plain decoding of the rows whose drafters lie in ``folders [N]``; ``rows [N]`` are theirs, then
    that of prompt lookup.

    Everything in turn in one run of ``dspark eval``, each drafter planned as ``generate`` plans it and without copies,
    prompt lookup alone beside them.
    """
    _check_quiet()
    drafters = [word for folder in folders for word in ("--drafter", str(folder))]
    for name, temperature in _SAMPLINGS.items():
        words = ["eval", "--planned", "--no-lookup", "--temperature", temperature, *options, *drafters]
        with tempfile.TemporaryDirectory() as made:
            figures = Path(made) / "figures.json"
            program = "from dspark.cli.main import run; run()"
            subprocess.run([sys.executable, "-c", program, *words, "--json", str(figures)], check=True)
            found = read_json(figures)
        for row, each in zip(rows, found["drafters"], strict=False):
            interval = each["intervals"]["speedup"]
            row.setdefault("speed", {})[name] = {"speedup": each["speedup"], "interval": interval, "tau": each["tau"]}
        lookup = {"speedup": found["ngram_speedup"], "interval": None, "tau": found["ngram_tau"]}
        rows[-1].setdefault("speed", {})[name] = lookup


def add_shares(rows: Sequence[Row], folders: Sequence[Path], dtype: str) -> None:
    """The sequential head's share of a greedy request's round of whole blocks."""
    _check_quiet()
    for row, folder in zip(rows, folders, strict=True):
        times = round_times(str(folder), 100, dtype)
        row["head_share"] = times.sequential / times.whole


def rewrite(path: Path, rows: Sequence[Row]) -> None:
    """All rows anew, or none."""
    text = "".join(json_text(row) + "\n" for row in rows)

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def _check_quiet() -> None:
    if (load := os.getloadavg()[0]) > BUSY:
        raise SystemExit(f"the load of this machine is {load:.2f}; time drafters when it is below {BUSY}")
