"""What benchmarks/results.py measures: one verb a record, in sizes that keep all of them under an hour on two cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dspark.data.benchmarks import ALL, BENCHMARKS, read_benchmark
from dspark.foundation.cache import cache_dir


@dataclass(frozen=True)
class Measurement:
    """The verb that makes a record, its options, and the ``minutes`` that these are meant to take."""

    record: str
    minutes: int
    verb: str
    options: str = ""

    def file(self, records: Path) -> Path:
        """Where it is kept."""
        return records / f"{self.record}.json"


SAMPLED = "--temperature 1"
ALL_MODES = "--modes off,fixed1,fixed4,ngram,adaptive"
FEW_MODES = "--modes off,fixed1,adaptive"
# Short answers: 32 users read and answer some 80 prompts a turn, so they have fewer modes as well.
LOAD = "--limit 4 --max-tokens 64"
# As the first of two whole runs took them (docs/lab_log.md), 4-bit blocks, all nine benchmarks: 34 minutes.
MEASUREMENTS = (
    Measurement("profile", 1, "profile"),
    Measurement("eval-greedy", 3, "eval", "--planned --limit 4"),
    Measurement("eval-temperature-1", 4, "eval", f"--planned --limit 4 {SAMPLED}"),
    Measurement("eval-blocks-greedy", 2, "eval", "--limit 2"),
    Measurement("eval-blocks-temperature-1", 3, "eval", f"--limit 2 {SAMPLED}"),
    Measurement("calibration-greedy", 1, "calibrate", "--limit 70"),
    Measurement("calibration-temperature-1", 1, "calibrate", f"--limit 70 {SAMPLED}"),
    Measurement("bench-greedy", 9, "bench", f"{ALL_MODES} --concurrency 1,4,16 {LOAD}"),
    Measurement("bench-greedy-32", 5, "bench", f"{FEW_MODES} --concurrency 32 {LOAD}"),
    Measurement("bench-temperature-1", 5, "bench", f"{FEW_MODES} --concurrency 1,4,16 {LOAD} {SAMPLED}"),
)
# Sizes that show in a few minutes whether everything works, and nothing else.
QUICK = {
    "profile": "--requests 2 --context 32",
    "eval": "--limit 1 --max-tokens 24",
    "calibrate": "--limit 6 --max-tokens 24",
    "bench": "--concurrency 1,2 --modes off,fixed2,adaptive --repeats 2 --limit 2 --max-tokens 12",
}
# Of a folder of benchmarks what users under load ask: one a domain, short enough for 64 at once.
ASKED_UNDER_LOAD = ("gsm8k", "humaneval", "alpaca")


def prompts_in(folder: Path) -> list[Path]:
    """Its prompts files."""
    return sorted(folder.glob("*.jsonl"))


def options_of(each: Measurement, quick: bool, folder: Path | None) -> Iterator[str]:
    """The words after the verb, of which the later of two values counts; ``folder`` holds prompts, None: the hub."""
    yield from each.options.split()
    if quick:
        yield from QUICK[each.verb].split()
    files = prompts_in(folder) if folder else []
    if each.verb == "eval":
        yield from _evaluated(files, folder)
    elif each.verb == "calibrate":
        yield from ("--prompts", *map(str, files or _from_the_hub()))
    elif each.verb == "bench" and files:
        yield from ("--prompts", *map(str, [one for one in files if one.stem in ASKED_UNDER_LOAD] or files))


def _evaluated(files: list[Path], folder: Path | None) -> Iterator[str]:
    """Benchmarks by name, each other file as a domain of its own."""
    if folder is None:
        yield from ("--benchmark", ALL)
        return
    if named := [one.stem for one in files if one.stem in BENCHMARKS]:
        yield from ("--benchmark", *named, "--benchmark-folder", str(folder))
    if others := [str(one) for one in files if one.stem not in BENCHMARKS]:
        yield from ("--prompts", *others)


def _from_the_hub() -> list[Path]:
    """The benchmarks as files in the cache, where `eval` has put them or they are put now."""
    for benchmark in BENCHMARKS.values():
        read_benchmark(benchmark)
    return [cache_dir() / "benchmarks" / f"{name}.jsonl" for name in BENCHMARKS]
