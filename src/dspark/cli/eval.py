"""`dspark eval`: acceptance, speed and exactness on prompts, with prompt lookup as the free baseline."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import (
    BUNDLED,
    DIFFERENT,
    CoupledOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    LookupOption,
    MaxTokensOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.calibration.record import Recorded
    from dspark.cli.pair import Pair
    from dspark.decoding.single import Decoder
    from dspark.evaluation.evaluate import Mode, Task, Trial
    from dspark.speculation.confidence import ConfidenceMap
    from dspark.speculation.loop import Round
    from dspark.speculation.sampling import Sampling


PlannedOption = Annotated[
    bool,
    typer.Option(
        "--planned",
        help="Draft and verify as much as pays here, as `generate` does; else all, to see it judged, and what"
        " confidence said of it.",
    ),
]


def evaluate(
    prompts: Annotated[
        list[Path] | None,
        typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL; a file's name is its domain."),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="NAME=FILE...", help="Prompts of a domain with a name of your own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="N prompts a domain, taken from its files in turn.")
    ] = None,
    planned: PlannedOption = False,
    lookup: LookupOption = True,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    coupled: CoupledOption = False,
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure acceptance, speed and exactness.

    Decodes every prompt's first turn plainly, with the drafter and by prompt lookup, interleaved. Exit code 1
    where drafting changed a greedy or coupled text by more than rounding explains.
    """
    from dspark.cli.eval_table import print_table, unexplained
    from dspark.cli.machine import load_now, machine_facts
    from dspark.cli.pair import load_pair
    from dspark.evaluation.summary import summarise
    from dspark.foundation.artifacts import write_json
    from dspark.speculation.sampling import Sampling

    load = load_now()
    sampling, files = Sampling(temperature, top_k, top_p), domains_of(prompts or [], domain or [])
    messages = _messages(files, limit)
    pair = load_pair(target, drafter, dtype, device)
    tasks = _tasks(pair, messages, seed)
    decoder = _decoder(pair, lookup, planned)
    trials, recorded = _trials(decoder, tasks, sampling, max_tokens, coupled, not planned)
    figures = summarise(trials)
    _add_confidence(figures, trials, recorded, pair.calibrations.of(sampling))
    if json is not None:
        settings = {"sampling": vars(sampling), "max_tokens": max_tokens, "seed": seed, "limit": limit}
        settings |= {"coupled": coupled, "planned": planned, "lookup": lookup}
        settings |= {"machine": machine_facts(pair.target.device, load), "files": _names(files)}
        write_json(json, figures | pair.asdict(decoder) | settings)
    print_table(figures)
    if unexplained(figures):
        raise typer.Exit(DIFFERENT)


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
    if not files:
        raise UserError("no prompts were given; name files with --prompts FILE or --domain NAME=FILE")
    return files


def _names(files: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {name: [str(path) for path in paths] for name, paths in files.items()}


def _messages(files: dict[str, list[Path]], limit: int | None) -> list[tuple[str, str, list[dict[str, str]]]]:
    """(domain, id, messages of the first turn) of all prompts; a domain's files take turns, so that a limit is fair."""
    from dspark.data.prompts import read_in_turn

    return [
        (name, prompt.id, prompt.first_messages())
        for name, paths in files.items()
        for prompt in read_in_turn(paths, limit)
    ]


def _tasks(pair: Pair, messages: list[tuple[str, str, list[dict[str, str]]]], seed: int) -> list[Task]:
    from dspark.evaluation.evaluate import Task

    tasks = []
    limit = pair.target.max_positions
    for name, identifier, turn in messages:
        ids = pair.target.chat.prompt_ids(turn)
        if len(ids) >= limit:
            raise UserError(
                f"the prompt {identifier!r} of {name} has {len(ids)} tokens, the context of"
                f" {pair.target.name} holds {limit}; take it out"
            )
        own_seed = hashlib.sha256(f"{seed}/{name}/{identifier}".encode()).digest()[:7]
        tasks.append(Task(name, identifier, ids, int.from_bytes(own_seed, "big")))
    return tasks


def _decoder(pair: Pair, lookup: bool, planned: bool) -> Decoder:
    from dspark.speculation.planner.single import WHOLE

    decoder = replace(pair.decoder, lookup=lookup)
    return decoder if planned else replace(decoder, greedy=WHOLE, sampled=WHOLE)


def _trials(
    decoder: Decoder, tasks: list[Task], sampling: Sampling, max_tokens: int, coupled: bool, whole: bool
) -> tuple[list[Trial], Recorded | None]:
    """Every task decoded in every mode and, where rounds are ``whole`` and there is a drafter, its rounds by the task's
    number, heard in a decoding of their own: nothing that is timed is listened to.
    """
    from dspark.calibration.record import Recorder
    from dspark.decoding.request import Request
    from dspark.evaluation.evaluate import measure
    from dspark.evaluation.summary import tally_of
    from dspark.foundation.progress import progress

    requests = {
        (task.domain, task.id): Request(f"{i}", task.prompt_ids, sampling, task.seed, max_tokens, coupled=coupled)
        for i, task in enumerate(tasks)
    }
    recorder = None
    if decoder.drafter is not None and whole:
        block, numbers = decoder.drafter.config.block_size, {f"{i}": i for i in range(len(tasks))}
        recorder = Recorder(block, decoder.target.stop_ids, numbers)
    heard = replace(decoder, observe=recorder)

    def decode(task: Task, mode: Mode) -> Sequence[Round]:
        completion = decoder.answer(requests[task.domain, task.id], mode)
        decoder.target.chat.decode(completion.output_ids)
        return completion.rounds

    from dspark.cli.judging import judge_of

    judge = judge_of(decoder.target, sampling) if sampling.greedy or coupled else None
    trials: list[Trial] = []
    with progress(len(tasks), "eval", "prompts") as bar:
        for trial in measure(tasks, decode, time.perf_counter, judge):
            trials.append(trial)
            if recorder is not None:
                heard.answer(requests[trial.task.domain, trial.task.id], "dspark")
            bar.advance(1, tau=tally_of(trials, "dspark").tau)
    return trials, None if recorder is None else recorder.recorded()


def _add_confidence(
    figures: dict[str, Any], trials: list[Trial], recorded: Recorded | None, calibration: ConfidenceMap | None
) -> None:
    """How good confidence was in rounds that verified whole blocks, of all prompts and of each domain's."""
    import numpy as np

    from dspark.calibration.choose import confidence_of

    if recorded is None:
        return
    figures["confidence"] = confidence_of(recorded, calibration)
    domains = np.array([trial.task.domain for trial in trials])
    for name, figures_of in figures["domains"].items():
        rows = domains[recorded.prompt] == name
        figures_of["confidence"] = confidence_of(recorded.at(rows), calibration)
