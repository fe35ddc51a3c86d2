"""`dspark eval`: acceptance, speed and exactness on prompts, with prompt lookup as the free baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dspark
from dspark.cli.options import (
    BUNDLED,
    DIFFERENT,
    CoupledOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LookupOption,
    MaxTokensOption,
    RawOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from dspark.foundation.artifacts import write_json
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.calibration.record import Recorded
    from dspark.cli.eval_prompts import Asked
    from dspark.cli.eval_trials import Settings
    from dspark.cli.pair import Pair
    from dspark.decoding.single import Decoder
    from dspark.evaluation.evaluate import Trial
    from dspark.evaluation.samples import Samples
    from dspark.speculation.confidence import ConfidenceMap

PromptsOption = Annotated[
    list[Path] | None,
    typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL, of which the first turn; a file is a domain."),
]
DomainOption = Annotated[
    list[str] | None,
    typer.Option("--domain", metavar="NAME=FILE...", help="Prompts of a domain with a name of your own."),
]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        metavar="NAME...",
        help="Benchmarks, all turns: gsm8k, math500, aime25, humaneval, mbpp, livecodebench, mt-bench, alpaca,"
        " arena-hard-v2; or math, code, chat, all.",
    ),
]
BenchmarkFolderOption = Annotated[
    Path | None,
    typer.Option("--benchmark-folder", metavar="DIR", help="Read NAME.jsonl there instead of asking the hub."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="N prompts a domain, taken from its files in turn; the first N a benchmark."),
]


def _folder(path: Path | None) -> Path | None:
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; give the path of a folder, or of nothing yet")
    return path


DraftersOption = Annotated[
    list[str],
    typer.Option("--drafter", help="Drafter: a folder, a hub id or a bundled name; given again, another beside it."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        callback=_folder,
        help="Keep every answer there (samples.jsonl) as soon as it is there; the same command goes on where it was.",
    ),
]
PlannedOption = Annotated[
    bool,
    typer.Option(
        "--planned",
        help="Draft and verify as much as pays here, as `generate` does; else all, to see it judged, and what"
        " confidence said of it.",
    ),
]


def evaluate(
    prompts: PromptsOption = None,
    domain: DomainOption = None,
    benchmark: BenchmarkOption = None,
    benchmark_folder: BenchmarkFolderOption = None,
    limit: LimitOption = None,
    raw: RawOption = False,
    out: OutOption = None,
    planned: PlannedOption = False,
    lookup: LookupOption = True,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    coupled: CoupledOption = False,
    target: TargetOption = BUNDLED,
    drafter: DraftersOption = [BUNDLED],  # noqa: B006  # read only
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure acceptance, speed and exactness.

    Decodes every prompt plainly, with each drafter and by prompt lookup, interleaved. Exit code 1 where drafting
    changed a greedy or coupled text by more than rounding explains.
    """
    from dspark.cli.eval_prompts import asked_of_benchmarks, asked_of_files, domains_of
    from dspark.cli.machine import load_now
    from dspark.speculation.sampling import Sampling

    load, sampling = load_now(), Sampling(temperature, top_k, top_p)
    _check_drafters(drafter)
    files = domains_of(prompts or [], domain or [])
    if not files and not benchmark:
        raise UserError(
            "no prompts were given; name files with --prompts FILE or --domain NAME=FILE, or benchmarks with"
            " --benchmark NAME"
        )
    asked = asked_of_files(files, limit) + asked_of_benchmarks(benchmark or [], benchmark_folder, limit)

    from dspark.cli.eval_table import print_figures, unexplained
    from dspark.cli.eval_trials import Settings

    settings = Settings(sampling, max_tokens, seed, coupled, planned, lookup, raw)
    figures = _measured(asked, _Models(target, tuple(drafter), dtype, device), settings, out, load)
    if json is not None:
        names = {name: [str(path) for path in paths] for name, paths in files.items()}
        write_json(json, figures | {"limit": limit, "files": names})
    print_figures(figures)
    if any(unexplained(each) for each in figures.get("drafters", [figures])):
        raise typer.Exit(DIFFERENT)


@dataclass(frozen=True)
class _Models:
    """What people wrote after --target, --drafter, --dtype and --device."""

    target: str
    drafters: tuple[str, ...]
    dtype: str
    device: str


def _check_drafters(names: Sequence[str]) -> None:
    """Drafters are told apart by what people call them."""
    from dspark.evaluation.evaluate import NGRAM, PLAIN

    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--drafter {name} is named twice; name each once")
        if name in (PLAIN, NGRAM):
            raise UserError(f"--drafter {name}: that is a way to decode without a drafter; for a folder, say ./{name}")


def _measured(
    asked: Sequence[Asked], models: _Models, settings: Settings, out: Path | None, load: str
) -> dict[str, Any]:
    """All figures: those of the first drafter, and where there are several those of each."""
    from dspark.cli.eval_prompts import check_lengths
    from dspark.cli.eval_trials import Evaluator, decoder_of
    from dspark.cli.machine import machine_facts
    from dspark.cli.pair import load_pairs
    from dspark.evaluation.paired import paired

    pairs = load_pairs(models.target, models.drafters, models.dtype, models.device)
    decoders = {name: decoder_of(pair, settings) for name, pair in zip(models.drafters, pairs, strict=True)}
    evaluator = Evaluator(decoders, settings)
    evaluator.target.chat.raw = settings.raw
    check_lengths(evaluator.target, asked, settings.seed)
    with _opened(out, pairs, settings) as samples:
        trials, left_out, kept = evaluator.run(asked, samples)
    if not trials:
        raise UserError(
            f"no prompt leaves room for an answer: the context of {evaluator.target.name} holds"
            f" {evaluator.target.max_positions} tokens; name others"
        )
    rows = [_figures(trials, pair, decoders[name], settings) for name, pair in zip(decoders, pairs, strict=True)]
    first, *others = models.drafters
    for row, name in zip(rows[1:], others, strict=True):
        row["paired"] = paired(trials, name, first)
    figures = rows[0] | ({"drafters": rows} if others else {}) | settings.asdict()
    return figures | {"machine": machine_facts(evaluator.target.device, load), "left_out": left_out, "kept": kept}


@contextmanager
def _opened(out: Path | None, pairs: Sequence[Pair], settings: Settings) -> Iterator[Samples | None]:
    """The folder of samples, where one is wanted; it holds those of the same models and settings alone."""
    from dspark.cli.pair import fingerprint
    from dspark.evaluation.samples import Samples

    if out is None:
        yield None
        return
    target = pairs[0].target
    identity = {name: value for name, value in target.identity.asdict().items() if name != "name"}
    run = {
        "version": dspark.__version__,
        "target": identity,
        "dtype": str(target.precision),
        "device": target.device.type,
    }
    run["drafters"] = {str(pair.drafter): fingerprint(str(pair.drafter)) for pair in pairs}
    with Samples(out, run | settings.asdict()) as samples:
        yield samples


def _figures(trials: Sequence[Trial], pair: Pair, decoder: Decoder, settings: Settings) -> dict[str, Any]:
    """Those of one drafter, with how good its confidence was where it was listened to."""
    from dspark.cli.eval_trials import recorded_of
    from dspark.evaluation.summary import summarise

    name, drafter = str(pair.drafter), decoder.drafter
    assert drafter is not None
    figures = summarise(trials, name)
    recorded = recorded_of(trials, name, drafter.config.block_size)
    _add_confidence(figures, trials, recorded, pair.calibrations.of(settings.sampling))
    return figures | pair.asdict(decoder)


def _add_confidence(
    figures: dict[str, Any], trials: Sequence[Trial], recorded: Recorded | None, calibration: ConfidenceMap | None
) -> None:
    """How good confidence was in rounds that verified whole blocks, of all prompts and of each domain and benchmark."""
    import numpy as np

    from dspark.calibration.choose import confidence_of

    if recorded is None:
        return
    figures["confidence"] = confidence_of(recorded, calibration)
    named = {
        "domains": [trial.task.domain for trial in trials],
        "benchmarks": [trial.task.benchmark for trial in trials],
    }
    for kind, names in named.items():
        for name, figures_of in figures.get(kind, {}).items():
            rows = np.array(names)[recorded.prompt] == name
            figures_of["confidence"] = confidence_of(recorded.at(rows), calibration)
