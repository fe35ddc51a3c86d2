"""The nine benchmarks of the paper's Table 1 by name: where their rows come from and what a model is asked.

Questions are put as DeepSpec puts them, since acceptance depends on the wording. Nothing here is ever trained on or
tuned to.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dspark.data.hub import Source, hub_rows
from dspark.data.prompts import Prompt, parse_prompts
from dspark.foundation.artifacts import json_text, write_atomic
from dspark.foundation.cache import cache_dir
from dspark.foundation.errors import UserError
from dspark.foundation.records import read_jsonl

Row = Mapping[str, Any]

ALL = "all"
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_CODER = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a"
    " correct Python program that matches the specification and passes all tests. You will NOT return anything except"
    " for the program"
)


@dataclass(frozen=True)
class Benchmark:
    """One of them. ``turns`` makes what a user says of a row's ``fields``; ``optional`` ones may be missing."""

    name: str
    domain: str
    source: Source
    fields: tuple[str, ...]
    turns: Callable[[Row], list[str]]
    optional: tuple[str, ...] = ()

    def prompt_row(self, row: Row, index: int, where: str) -> dict[str, Any]:
        """A row of the source, or one that holds turns already, as a prompts file has it; ``index`` counts from 0.

        UserError, naming ``where``, for a row without the fields.
        """
        named = {"id": row.get("id", f"{self.name}-{index}")}
        if isinstance(row.get("turns"), list):
            return named | {"turns": row["turns"]}
        missing = [field for field in self.fields if not row.get(field)]
        if missing:
            raise UserError(
                f"{where}: a row of {self.name} needs 'turns', or {_listed(self.fields)} as {self.source} has it; found"
                f" {_listed(sorted(row)) or 'nothing'}"
            )
        return {"id": f"{self.name}-{index}", "turns": self.turns(row)}


def _boxed(field: str) -> Callable[[Row], list[str]]:
    return lambda row: [f"{row[field]}\n{_BOXED}"]


def _as_it_is(field: str) -> Callable[[Row], list[str]]:
    return lambda row: [row[field]]


def _completion(row: Row) -> list[str]:
    task = "Write a solution to the following problem and make sure that it passes the tests:"
    return [f"{task}\n```python\n{row['prompt']}\n```"]


def _program(row: Row) -> list[str]:
    form, code = "Write your code in the following format:", "# YOUR CODE HERE"
    if row.get("starter_code"):
        form, code = "Use the following code structure:", row["starter_code"]
    asked = f"### Question:\n{row['question_content']}\n\n### Format: {form}\n```python\n{code}\n```"
    return [f"{_CODER}\n\n{asked}\n\n### Answer: (use the provided format with backticks)"]


def _conversation(row: Row) -> list[str]:
    return row["prompt"] if isinstance(row["prompt"], list) else []


_HUB = "hf://datasets"
_LCB = tuple(f"{_HUB}/livecodebench/code_generation_lite/test{number}.jsonl" for number in ("", *range(2, 7)))
_ALPACA = (f"{_HUB}/tatsu-lab/alpaca_eval/alpaca_eval.json",)
_ARENA = (f"{_HUB}/lmarena-ai/arena-hard-auto/data/arena-hard-v2.0/question.jsonl",)

_NINE = (
    Benchmark("gsm8k", "math", Source("openai/gsm8k", "main", "test"), ("question",), _boxed("question")),
    Benchmark("math500", "math", Source("HuggingFaceH4/MATH-500", None, "test"), ("problem",), _boxed("problem")),
    Benchmark("aime25", "math", Source("MathArena/aime_2025"), ("problem",), _boxed("problem")),
    Benchmark("humaneval", "code", Source("openai/openai_humaneval", None, "test"), ("prompt",), _completion),
    Benchmark(
        "mbpp", "code", Source("google-research-datasets/mbpp", "sanitized", "test"), ("prompt",), _as_it_is("prompt")
    ),
    Benchmark(
        "livecodebench", "code", Source("json", files=_LCB), ("question_content",), _program, optional=("starter_code",)
    ),
    Benchmark("mt-bench", "chat", Source("HuggingFaceH4/mt_bench_prompts"), ("prompt",), _conversation),
    Benchmark("alpaca", "chat", Source("json", files=_ALPACA), ("instruction",), _as_it_is("instruction")),
    Benchmark("arena-hard-v2", "chat", Source("json", files=_ARENA), ("prompt",), _as_it_is("prompt")),
)
BENCHMARKS: dict[str, Benchmark] = {each.name: each for each in _NINE}
DOMAINS: dict[str, list[str]] = {
    domain: [each.name for each in _NINE if each.domain == domain] for domain in ("math", "code", "chat")
}


def named_benchmarks(names: Iterable[str]) -> list[Benchmark]:
    """Benchmarks by their names, those of a domain by its name, or all of them; each once, in the order asked for.

    UserError for a name that is none.
    """
    groups = DOMAINS | {ALL: list(BENCHMARKS)}
    chosen: dict[str, Benchmark] = {}
    for name in names:
        if name not in BENCHMARKS and name not in groups:
            near = difflib.get_close_matches(name, [*BENCHMARKS, *groups], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"--benchmark {name!r} is not known; {hint}There are {', '.join(BENCHMARKS)}, and"
                f" {', '.join(groups)} for several of them"
            )
        chosen |= {each: BENCHMARKS[each] for each in groups.get(name, [name])}
    return list(chosen.values())


def read_benchmark(benchmark: Benchmark, folder: Path | None = None) -> list[Prompt]:
    """Its prompts, from ``NAME.jsonl`` in ``folder``, or from the hub (None): asked once, then kept in the cache.

    Rows of a file are prompts (``turns``) or have the fields of the source. UserError for a file that is not there, a
    row without the fields or an id that occurs twice.
    """
    path = _fetched(benchmark) if folder is None else _found(benchmark, folder)
    rows = enumerate(read_jsonl(path))
    return parse_prompts(
        (where := f"{path}, line {line}", benchmark.prompt_row(row, index, where)) for index, (line, row) in rows
    )


def _found(benchmark: Benchmark, folder: Path) -> Path:
    path = folder / f"{benchmark.name}.jsonl"
    if not folder.is_dir():
        raise UserError(f"--benchmark-folder {folder} is no folder; expected one with {path.name} in it")
    if not path.is_file():
        there = sorted(each.name for each in folder.glob("*.jsonl"))
        raise UserError(
            f"--benchmark-folder {folder} has no {path.name}; found {', '.join(there) or 'no JSONL file'}: add it, or"
            " leave the folder out to read the hub"
        )
    return path


def _fetched(benchmark: Benchmark) -> Path:
    """The file of prompts in the cache, made of the hub's rows where it is not there yet."""
    path = cache_dir() / "benchmarks" / f"{benchmark.name}.jsonl"
    if not path.is_file():
        rows = list(_prompt_rows(benchmark))
        if not rows:
            raise UserError(f"{benchmark.source} has no rows on the hub; name a folder with --benchmark-folder")
        parse_prompts((f"{benchmark.source}, row {index}", row) for index, row in enumerate(rows))
        text = "".join(json_text(row) + "\n" for row in rows)
        write_atomic(path, lambda temporary: _write(temporary, text))
    return path


def _prompt_rows(benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    from dspark.foundation.progress import progress

    columns = (*benchmark.fields, *benchmark.optional)
    rows = hub_rows(benchmark.source, columns)
    begun = list(islice(rows, 1))  # nothing is shown of a hub that does not answer
    with progress(None, f"{benchmark.name} from the hub", "rows") as bar:
        for index, row in enumerate(chain(begun, rows)):
            yield benchmark.prompt_row(row, index, f"{benchmark.source}, row {index}")
            bar.advance(1)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
