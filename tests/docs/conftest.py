"""The tiny pair and the program, for the pages that use them."""

from tiny_cli import cli, prompts_file, tiny, tiny_drafter, tiny_target

__all__ = ["cli", "prompts_file", "tiny", "tiny_drafter", "tiny_target"]
