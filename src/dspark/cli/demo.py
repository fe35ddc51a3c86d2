"""`dspark demo`: six prompts, plain and speculative, side by side, timed honestly; leaves a page."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.cli.options import (
    BUNDLED,
    DIFFERENT,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    SeedOption,
    TargetOption,
    writable,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.cli.pair import Pair
    from dspark.evaluation.evaluate import Task
    from dspark.evaluation.identity import Comparison
    from dspark.evaluation.race import Race, Way
    from dspark.report.demo import DemoRecord, Showing
    from dspark.report.panels import DemoPanels
    from dspark.speculation.loop import Round


def check_seconds(seconds: float) -> float:
    """Refuse a budget of time that is none."""
    if not 1 <= seconds < math.inf:
        raise UserError(f"--seconds is {seconds:g}; expected a number of at least 1")
    return seconds


def demo(
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    max_tokens: MaxTokensOption = 96,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats of all prompts.")] = 5,
    seconds: Annotated[
        float,
        typer.Option("--seconds", callback=check_seconds, help="Time for all of it; texts are shortened to fit."),
    ] = 150.0,
    page: Annotated[
        Path, typer.Option("--page", metavar="PATH", callback=writable("--page"), help="Where the page goes.")
    ] = Path("dspark-demo.html"),
    json: JsonOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
) -> None:
    """Show plain and speculative decoding side by side on math, code and chat; writes a page.

    Exit code 1 where drafting changed a text by more than rounding explains.
    """
    from dspark.cli.machine import load_now

    load = load_now()
    prompts = demo_prompts()
    from dspark.cli.pair import load_pair
    from dspark.foundation.artifacts import write_json
    from dspark.report.page import write_page
    from dspark.report.panels import DemoPanels

    pair = load_pair(target, drafter, dtype, device)
    panels = DemoPanels(sys.stdout)
    panels.legend()
    started = time.perf_counter()
    race, showings = _run(pair, prompts, panels, max_tokens, repeats, seconds, seed)
    record = _record(pair, race, showings, repeats, load, time.perf_counter() - started)
    panels.summary(record)
    write_page(page, record)
    print(f"\npage: {page}")
    if json is not None:
        write_json(json, record.as_json())
    if record.overall.unexplained:
        raise typer.Exit(DIFFERENT)


@dataclass(frozen=True)
class DemoPrompt:
    """One of the demo's own prompts."""

    id: str
    domain: str
    text: str


def demo_prompts() -> list[DemoPrompt]:
    """The prompts that come with the package."""
    from dspark.foundation.records import read_jsonl

    return [DemoPrompt(row["id"], row["domain"], row["turns"][0]) for _, row in read_jsonl(demo_file())]


def demo_file() -> Path:
    """Where they lie."""
    return Path(str(files("dspark"))) / "assets" / "demo" / "prompts.jsonl"


def _run(
    pair: Pair,
    prompts: list[DemoPrompt],
    panels: DemoPanels,
    max_tokens: int,
    repeats: int,
    seconds: float,
    seed: int,
) -> tuple[Race, list[Showing]]:
    """Decode everything; each showing is printed as soon as it is there."""
    from dspark.cli.demo_record import showing_of
    from dspark.evaluation.evaluate import Task
    from dspark.evaluation.race import Race
    from dspark.foundation.progress import progress

    chat = pair.target.chat
    tasks = [Task(p.domain, p.id, chat.prompt_ids([{"role": "user", "content": p.text}]), seed) for p in prompts]
    decoding = _Decoding(pair)
    race = Race(tasks, decoding.rounds, decoding.judge, time.perf_counter, seconds, max_tokens)
    race.warm_up()
    showings = []
    for number, (task, prompt) in enumerate(zip(tasks, prompts, strict=True), start=1):
        showings.append(showing_of(race.show(task), prompt.text, chat.decode))
        panels.showing(showings[-1], number, len(tasks))
    race.set_length(repeats)
    with progress(repeats, f"timing, {race.repeat_tokens} tokens a prompt", "repeats") as bar:
        while race.wants_another(repeats):
            race.repeat()
            bar.advance(1)
    return race, showings


@dataclass(frozen=True)
class _Decoding:
    """The pair as the race sees it: greedy, with the text put together as it comes."""

    pair: Pair

    def rounds(self, task: Task, way: Way, max_tokens: int) -> Iterator[Round]:
        from dspark.decoding.request import Request
        from dspark.serving.tokens import TextStream
        from dspark.speculation.sampling import Sampling

        stream = TextStream(self.pair.target.chat.decode)
        request = Request(task.id, task.prompt_ids, Sampling(), task.seed, max_tokens)
        for each in self.pair.decoder.stream(request, way):
            stream.push(each.tokens)
            yield each
        stream.finish()

    def judge(self, task: Task, plain_ids: list[int], spec_ids: list[int]) -> Comparison:
        from dspark.evaluation.identity import judge, replay
        from dspark.targets.session import TargetSession

        target = self.pair.target
        capacity = len(task.prompt_ids) + len(plain_ids) + 1
        logits_at = replay(lambda: TargetSession(target, capacity), task.prompt_ids, plain_ids)
        return judge(plain_ids, spec_ids, logits_at, target.agreement)


def _record(pair: Pair, race: Race, showings: list[Showing], repeats: int, load: str, seconds: float) -> DemoRecord:
    from dspark.cli.demo_record import pairs_of, step_and_round_ms
    from dspark.cli.machine import machine_facts
    from dspark.report.demo import DemoRecord

    pairs, overall = pairs_of(race)
    step_ms, round_ms = step_and_round_ms(race)
    names = pair.asdict()
    drafter = pair.decoder.drafter
    return DemoRecord(
        showings=tuple(showings),
        pairs=pairs,
        overall=overall,
        step_ms=step_ms,
        round_ms=round_ms,
        block=(pair.decoder.greedy.draft_slots or drafter.config.block_size) if drafter is not None else 0,
        shown_tokens=race.shown_tokens,
        repeat_tokens=race.repeat_tokens,
        repeats=len(race.repeats),
        repeats_asked=repeats,
        target=names["target"],
        drafter=str(names["drafter"]),
        dtype=names["dtype"],
        machine=machine_facts(pair.target.device, load),
        date=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        command=shlex.join(["dspark", *sys.argv[1:]]),
        seconds=seconds,
    )
