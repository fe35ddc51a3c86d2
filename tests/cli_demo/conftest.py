"""The tiny pair of the other verbs, with room for the demo's own prompts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from tiny_pair import make_drafter, make_target, make_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the pair, in fp32, where texts must be identical."""
    folder = tmp_path_factory.mktemp("models")
    target = make_target(folder / "demo-target", make_tokenizer(), max_position_embeddings=512)
    drafter = make_drafter(folder / "demo-drafter", target)
    return ["--target", str(target), "--drafter", str(drafter), "--dtype", "float32", "--device", "cpu"]
