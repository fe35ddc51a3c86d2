"""The tiny pair and the program, for the script that measures with them."""

import sys
from pathlib import Path

from tiny_cli import cli, prompts_file, tiny, tiny_drafter, tiny_target

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # the script's own folder, as when it is run

__all__ = ["cli", "prompts_file", "tiny", "tiny_drafter", "tiny_target"]
