"""`dspark bench`: the engine under closed-loop load, all modes in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import (
    BUNDLED,
    DIFFERENT,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    RawOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    writable,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.cli.pair import Pair
    from dspark.decoding.named import Speculation
    from dspark.decoding.planners import Adaptive
    from dspark.decoding.request import Request
    from dspark.load.closed import Run
    from dspark.load.interleaved import Interleaved
    from dspark.speculation.cost import CostModel
    from dspark.speculation.sampling import Sampling

Runs = dict[str, list["Run"]]  # by mode, turn by turn

_CACHE_BYTES = 8e9  # of the requests that costs are measured with, at most
_FEWEST = 8  # prompts of a row


ConcurrencyOption = Annotated[str, typer.Option("--concurrency", help="Users at once: one or several numbers.")]
ModesOption = Annotated[
    str, typer.Option("--modes", help="off, fixedK (K drafts), ngram, adaptive, delayed; the first is compared with.")
]
PromptsOption = Annotated[
    list[Path] | None,
    typer.Option("--prompts", metavar="FILE...", help="Prompts; files take turns. The demo's where none are given."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Prompts of a turn.", show_default="as many as users, at least 8"),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Keep every run there (runs.jsonl), and plots of all rows."),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE.json",
        callback=writable("--trace"),
        help="Note every piece of every step, for a browser's trace viewer.",
    ),
]


def bench(
    concurrency: ConcurrencyOption = "1,4,16",
    modes: ModesOption = "off,fixed1,fixed4,ngram,adaptive",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns of all modes, each on further prompts.")] = 5,
    prompts: PromptsOption = None,
    limit: LimitOption = None,
    raw: RawOption = False,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    out: OutOption = None,
    trace: TraceOption = None,
    json: JsonOption = None,
) -> None:
    """Measure throughput and per-user speed of every mode under load.

    So many users ask, each again as soon as it is answered, until the prompts of a turn are used up; modes take turns
    on the same prompts. Adaptive decoding first measures what steps cost here. Nothing else should run. Exit code 1
    where a mode changed a greedy text by more than rounding explains.
    """
    from dspark.cli.machine import load_now, machine_facts
    from dspark.cli.pair import load_pair
    from dspark.foundation.artifacts import write_json
    from dspark.load.interleaved import Interleaved
    from dspark.speculation.sampling import Sampling

    load, users, sampling = load_now(), numbers_of(concurrency), Sampling(temperature, top_k, top_p)
    asked = _named(modes, pair := load_pair(target, drafter, dtype, device))
    pair.target.chat.raw = raw
    adaptive = adaptive_of(pair, max(users)) if any(mode.scheduled for mode in asked) else None
    measured = Interleaved(pair.target, pair.decoder.drafter, asked, adaptive, time.perf_counter, {} if trace else None)
    ids, rows = _prompt_ids(pair, prompts or []), []
    for count in users:
        turns = _turns(ids, max(count, limit or _FEWEST), repeats, sampling, max_tokens, seed)
        rows += _rows(pair, measured, count, turns, out)
    _draw(out, rows)
    _note(trace, measured)
    if json is not None:
        said = {"sampling": vars(sampling), "max_tokens": max_tokens, "seed": seed, "repeats": repeats, "raw": raw}
        said |= {"prompts": [str(path) for path in prompts or []], "machine": machine_facts(pair.target.device, load)}
        write_json(json, pair.asdict() | said | {"rows": rows, "costs": adaptive and adaptive.costs.asdict()})
    if any(row["identical"] and row["identical"]["unexplained"] for row in rows):
        raise typer.Exit(DIFFERENT)


def _named(modes: str, pair: Pair) -> list[Speculation]:
    """The modes that were asked for; UserError for one that is none, or that comes twice."""
    from dspark.decoding.named import Speculation

    drafter, names = pair.decoder.drafter, [name.strip() for name in modes.split(",")]
    if len(set(names)) < len(names):
        raise UserError(f"--modes {modes} names one twice")
    if drafter is None:
        return [Speculation.named(name, None) for name in names]
    return [Speculation.named(name, drafter.config.block_size, drafter.config.kind) for name in names]


def numbers_of(text: str) -> list[int]:
    """``1,4,16`` as numbers; UserError for what are none."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--concurrency {text!r} is not understood; expected numbers from 1 on, like 1,4,16")
    return [int(word) for word in words]


def adaptive_of(pair: Pair, most: int, costs: CostModel | None = None) -> Adaptive:
    """How steps of up to ``most`` requests are planned here; measures what they cost where nobody has."""
    from dspark.decoding.costs import measured_costs
    from dspark.decoding.planners import Adaptive, lengths_of

    drafter = pair.decoder.drafter
    assert drafter is not None
    costs = costs or measured_costs(pair.target, drafter, most, 512, _CACHE_BYTES)
    return Adaptive(costs, pair.calibrations, lengths=lengths_of(drafter.config.block_size))


def _prompt_ids(pair: Pair, paths: Sequence[Path]) -> list[list[int]]:
    from dspark.cli.demo import demo_file
    from dspark.data.prompts import read_in_turn

    ids = [pair.target.chat.prompt_ids(each.first_messages()) for each in read_in_turn(paths or [demo_file()])]
    fitting = [each for each in ids if len(each) < pair.target.max_positions]
    if not fitting:
        raise UserError(f"no prompt fits the context of {pair.target.name} ({pair.target.max_positions} tokens)")
    return fitting


def _turns(
    ids: Sequence[list[int]], size: int, repeats: int, sampling: Sampling, max_tokens: int, seed: int
) -> list[list[Request]]:
    """The requests of each turn and of one more that is not measured: further prompts from one to the next, from the
    start again where they end.
    """
    from dspark.decoding.request import Request

    return [
        [
            Request(f"{turn}/{i}", ids[(turn * size + i) % len(ids)], sampling, seed + turn * size + i, max_tokens)
            for i in range(size)
        ]
        for turn in range(repeats + 1)
    ]


def _rows(
    pair: Pair, measured: Interleaved, users: int, turns: Sequence[Sequence[Request]], out: Path | None
) -> list[dict[str, Any]]:
    """A row for each mode with so many users; every run is kept as soon as it is there."""
    from dspark.cli.bench_table import print_rows, row_of
    from dspark.foundation.progress import progress
    from dspark.foundation.records import JsonlWriter

    runs: Runs = {mode.name: [] for mode in measured.modes}
    with progress((len(turns) - 1) * len(runs), f"{users} at once", "runs") as bar:

        def heard(mode: str, turn: int, run: Run) -> None:
            runs[mode].append(run)
            bar.advance(1)
            if out is not None:
                with JsonlWriter(out / "runs.jsonl") as writer:
                    writer.append([{"mode": mode, "concurrency": users, "turn": turn} | run.figures()])

        measured.measure(users, turns, heard)
    sampling = turns[0][0].sampling
    rows = [row_of(mode, users, runs) | {"identical": _judged(pair, sampling, turns[:-1], runs, mode)} for mode in runs]
    print_rows(rows)
    return rows


def _judged(
    pair: Pair, sampling: Sampling, turns: Sequence[Sequence[Request]], runs: Runs, mode: str
) -> dict[str, int] | None:
    """Whether a mode's greedy texts are plain decoding's; None where texts are drawn, or nobody decoded plainly."""
    from dspark.cli.judging import judge_of
    from dspark.evaluation.evaluate import Task
    from dspark.load.closed import texts

    if not sampling.greedy or "off" not in runs:
        return None
    judge = judge_of(pair.target, sampling)
    plain, other = texts(runs["off"]), texts(runs[mode])
    equal = unexplained = 0
    for request in (each for turn in turns for each in turn):
        ids = plain[request.id], other[request.id]
        equal += ids[0] == ids[1]
        if ids[0] != ids[1]:
            unexplained += judge(Task("", request.id, request.prompt_ids, request.seed), *ids).unexplained
    return {"equal": equal, "total": len(plain), "unexplained": unexplained}


def _note(trace: Path | None, measured: Interleaved) -> None:
    from dspark.decoding.laps import trace_of
    from dspark.foundation.artifacts import write_json

    if trace is not None and measured.spans is not None:
        write_json(trace, trace_of(measured.spans))


def _draw(out: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    if out is None:
        return
    from dspark.report.load_plots import budget_plot, frontier_plot

    frontier_plot(out / "frontier.svg", rows)
    budget_plot(out / "load.svg", rows)
