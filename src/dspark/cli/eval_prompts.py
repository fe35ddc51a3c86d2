"""What `dspark eval` asks: prompts of files and of benchmarks, turn by turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.data.conversation import Conversation
    from dspark.data.prompts import Prompt
    from dspark.evaluation.evaluate import Task
    from dspark.targets.chat import Chat
    from dspark.targets.model import Target


@dataclass(frozen=True)
class Asked:
    """A prompt and where it belongs; ``benchmark`` is empty for prompts of a file."""

    domain: str
    benchmark: str
    prompt: Prompt


def domains_of(prompts: list[Path], named: list[str]) -> dict[str, list[Path]]:
    """Files by domain, in the order given: a file's own name, or the one before the equals sign."""
    files: dict[str, list[Path]] = {}
    for path in prompts:
        files.setdefault(path.stem, []).append(path)
    for text in named:
        name, equals, path_text = text.partition("=")
        if not equals or not name or not path_text:
            raise UserError(f"--domain {text!r} is not understood; expected NAME=FILE")
        files.setdefault(name, []).append(Path(path_text))
    return files


def asked_of_files(files: dict[str, list[Path]], limit: int | None) -> list[Asked]:
    """First turns of all prompts; a domain's files take turns, so that a limit is fair."""
    from dspark.data.prompts import read_in_turn

    return [
        Asked(name, "", replace(prompt, turns=prompt.turns[:1]))
        for name, paths in files.items()
        for prompt in read_in_turn(paths, limit)
    ]


def asked_of_benchmarks(names: Iterable[str], folder: Path | None, limit: int | None) -> list[Asked]:
    """All turns of the first ``limit`` prompts of each benchmark."""
    from dspark.data.benchmarks import named_benchmarks, read_benchmark

    return [
        Asked(benchmark.domain, benchmark.name, prompt)
        for benchmark in named_benchmarks(names)
        for prompt in read_benchmark(benchmark, folder)[:limit]
    ]


@dataclass
class Dialogue:
    """A prompt under way: a later turn is asked with plain decoding's own answers to those before."""

    asked: Asked
    conversation: Conversation

    @classmethod
    def of(cls, asked: Asked) -> Dialogue:
        """Nothing is answered yet."""
        from dspark.data.conversation import Conversation

        return cls(asked, Conversation(asked.prompt))

    @property
    def left(self) -> int:
        """Turns without an answer."""
        return len(self.asked.prompt.turns) - self.conversation.turn

    def task(self, chat: Chat, seed: int) -> Task:
        """The next turn; its draws are seeded by ``seed``, the benchmark or domain, the prompt's id and the turn."""
        from dspark.evaluation.evaluate import Task

        asked, turn = self.asked, self.conversation.turn
        name = f"{seed}/{asked.benchmark or asked.domain}/{asked.prompt.id}" + (f"/{turn}" if turn else "")
        own_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        ids = chat.prompt_ids(self.conversation.messages())
        return Task(asked.domain, asked.prompt.id, ids, own_seed, asked.benchmark, turn)


def check_lengths(target: Target, asked: Sequence[Asked], seed: int) -> None:
    """Refuse a prompt of a file that leaves no room in the target's context, before anything is decoded.

    Benchmarks are others' work: what is too long of them is left out and counted.
    """
    limit = target.max_positions
    for each in asked:
        if each.benchmark:
            continue
        if (length := len(Dialogue.of(each).task(target.chat, seed).prompt_ids)) >= limit:
            raise UserError(
                f"the prompt {each.prompt.id!r} of {each.domain} has {length} tokens, the context of {target.name}"
                f" holds {limit}; take it out"
            )
