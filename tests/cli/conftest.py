"""The tiny pair and the program, for all tests of its verbs."""

from tiny_cli import cli, prompts_file, tiny, tiny_drafter, tiny_target

__all__ = ["cli", "prompts_file", "tiny", "tiny_drafter", "tiny_target"]
