"""Where the reference implementation's outputs lie."""

from __future__ import annotations

from pathlib import Path


def golden_of(kind: str) -> Path:
    return Path(__file__).parents[1] / "golden" / f"deepspec_qwen3_tiny_{kind}"
