"""All kinds of drafters trained under equal conditions, and what each then gains: equal tokens, equal time.

    OMP_NUM_THREADS=1 python benchmarks/compare_drafters.py --responses corpus/smollm2-135m.xz --out FOLDER
        --domain math=FILE --domain code=FILE --domain chat=FILE [--limit 10] [--workers 2] [--parts sweep tokens ...]

Every kind starts from the target's own last layers and sees the same answers in the same order, with as many taught
slots a sequence. ``sweep`` finds each kind's learning rate in runs as long as those of the tables (held-out answers
decide, never the prompts of the domains) and times its step in turn with DSpark's; ``tokens`` gives each as many steps,
``time`` as many as DSpark's take; ``depth`` varies layers and ``lengths`` the block, ``losses`` gives DFlash what
DSpark learns with, ``longer`` trains four times as long. What was trained decodes the prompts for real, whole blocks of
its own, greedy and at temperature 1; ``speed`` and ``shares`` then time it (benchmarks/compared_speed.py), with nothing
else running. Rows go to FOLDER/comparison.jsonl as soon as they are there, a run that has its row is not made again;
what was trained stays in FOLDER. Each of the workers trains on a thread of its own and all read the same features.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from compared_prompts import Prompts
from compared_speed import add_shares, add_speed, rewrite
from experiments import Arm, Room, Run, relative, validated

from dspark.cli.pair import load_beside
from dspark.decoding.modes import LOOKUP_BLOCK
from dspark.drafters.checkpoint import save_drafter
from dspark.foundation.records import JsonlWriter

Row = dict[str, Any]

BASE = "DSpark vanilla"
SLOTS = 84  # taught, of a sequence in a step
SEEDS = (0, 1)
RATES = (1.5e-3, 3.0e-3, 6.0e-3)
USUAL, CHANCE = 3.0e-3, 0.03  # a rate, and what a sum of two held-out taus may differ by from seed to seed
LOOKUP = "prompt lookup"
LONGER = 4  # times as many steps


@dataclass(frozen=True)
class Kind:
    """One way to draft: its recipe, and what is set otherwise."""

    recipe: str = "smollm2-135m"
    settings: tuple[str, ...] = ()
    block: int = 7
    layers: int = 3

    def arm(self, seed: int, rate: float) -> Arm:
        """How it is trained."""
        own = (f"drafter.block_size={self.block}", f"drafter.layers={self.layers}", f"trainer.seed={seed}")
        taught = (f"trainer.anchors={SLOTS // self.block}", f"optimizer.lr={rate}")
        return Arm((*own, *taught, *self.settings), recipe=self.recipe)


# Short runs learn by cross-entropy first (docs/lab_log.md).
LATER = "loss.l1_after=0.5"
KINDS = {
    BASE: Kind(settings=(LATER,)),
    "DSpark gated": Kind(settings=(LATER, "drafter.markov_head_type=gated")),
    "DSpark RNN": Kind(settings=(LATER, "drafter.markov_head_type=rnn")),
    "DFlash": Kind("smollm2-135m-dflash"),
    "Eagle3": Kind("smollm2-135m-eagle3", layers=1),
    "MTP-1": Kind("smollm2-135m-mtp", block=1, layers=1),
}
DEPTH = {f"{arm}, {n} layer{'s' * (n > 1)}": replace(KINDS[arm], layers=n) for arm in (BASE, "DFlash") for n in (1, 2)}
LENGTHS = {f"{BASE}, K = {k}": replace(KINDS[BASE], block=k) for k in (3, 11, 15)}
_AS_DSPARK = (LATER, "loss.hard_ce=0.0", "loss.soft_ce=0.5", "loss.l1=1.0")
LOSSES = {"DFlash, DSpark's losses": replace(KINDS["DFlash"], settings=_AS_DSPARK)}
VARIANTS = {"depth": DEPTH, "lengths": LENGTHS, "losses": LOSSES}
# The supposed cause of what the paper has otherwise: it trains far longer.
LONG = (BASE, "Eagle3")
# What a run with as many tokens of training is part of beside its own table.
ALSO = {BASE: ("time", "depth", "lengths", "longer"), "DFlash": ("depth",), "Eagle3": ("longer",)}


@dataclass(frozen=True)
class Job:
    """One drafter to train: which, for what, how long and how."""

    arm: str
    kind: Kind
    part: str
    steps: int
    seed: int
    rate: float

    @property
    def tables(self) -> list[str]:
        """Those of the page that its row belongs to."""
        if self.part != "tokens":
            return [self.part]
        return ["tokens", "sweep", *ALSO.get(self.arm, ())]

    def made(self, rows: Iterable[Row]) -> bool:
        """Whether its row is there."""
        mine = (self.arm, self.seed, self.rate, self.steps)
        found = (row for row in rows if (row["arm"], row["seed"], row.get("lr"), row.get("steps")) == mine)
        return any(self.part in row["tables"] for row in found)


def folder_of(arm: str, table: str, seed: int) -> str:
    """Where what was trained lies."""
    words = f"{arm} {table} {seed}".replace(",", "").replace("'", "").replace("= ", "")
    return words.replace(" ", "-")


class Trainer:
    """Makes rows of jobs, in whatever process it finds itself."""

    def __init__(self, room: Room, prompts: Prompts, folder: Path) -> None:
        self._room, self._prompts, self._folder = room, prompts, folder

    def row(self, job: Job) -> Row:
        """Train, judge on held-out answers and, but in the sweep, decode."""
        run, tokens = Run(self._room, job.kind.arm(job.seed, job.rate), job.steps), 0.0
        started = time.process_time()
        while run.learner.step < job.steps:
            tokens += run.learn()["answer_tokens"]
        seconds = time.process_time() - started
        return {
            "record": "comparison",
            "arm": job.arm,
            "tables": job.tables,
            "kind": run.learner.drafter.config.kind,
            "layers": job.kind.layers,
            "block_size": job.kind.block,
            "seed": job.seed,
            "lr": job.rate,
            "steps": job.steps,
            "step_price": self._price(job),
            "tokens": int(tokens),
            "seconds": seconds,
            "validation": asdict(validated(self._room, run.learner.drafter)),
            "decoded": None if job.part == "sweep" else self._decoded(run, job),
        }

    def _price(self, job: Job) -> float | None:
        """A step's time in steps of DSpark vanilla, timed in turn; once a kind."""
        if (job.part, job.rate) != ("sweep", RATES[0]):
            return None
        return 1.0 if job.arm == BASE else relative(self._room, job.kind.arm(0, job.rate), KINDS[BASE].arm(0, job.rate))

    def _decoded(self, run: Run, job: Job) -> dict[str, Any]:
        folder = self._folder / folder_of(job.arm, job.part, job.seed)
        export = getattr(torch, run.learner.recipe.drafter.export_dtype)
        save_drafter(folder, run.learner.drafter, self._room.packed.identity, dtype=export)
        return self._prompts.decoded(load_beside(self._room.packed, folder))

    def lookup(self) -> Row:
        """The baseline that needs no training."""
        row = {"record": "comparison", "arm": LOOKUP, "tables": ["tokens", "time"], "kind": "ngram"}
        row |= {"layers": None, "block_size": LOOKUP_BLOCK, "seed": None, "tokens": 0, "seconds": 0.0}
        return row | {"decoded": self._prompts.decoded(None)}


class Comparison:
    """The rows of a folder, and which jobs make those that are missing."""

    def __init__(self, trainer: Trainer, path: Path, steps: int, workers: int) -> None:
        self._trainer, self._path, self._steps, self._workers = trainer, path, steps, workers
        self.rows = rows_of(path)

    def make(self, part: str) -> None:
        """The rows of a part."""
        name, _, seed = part.partition(" ")
        if name == "lookup":
            if not any(row["arm"] == LOOKUP for row in self.rows):
                self._keep(self._trainer.lookup())
        elif name == "sweep":
            self._sweep()
        else:
            self._run(list(self._jobs(name, int(seed or 0))))

    def _sweep(self) -> None:
        """All of ``RATES``, and further ones for as long as a kind does best with its least or its largest; what then
        seems better than the usual rate is tried with the other seed as well.
        """
        due = {arm: list(RATES) for arm in KINDS}
        while due:
            self._run([Job(arm, KINDS[arm], "sweep", self._steps, SEEDS[0], r) for arm in due for r in due[arm]])
            due = {arm: further for arm in due if (further := self._beyond(arm))}
        doubtful = {arm: (USUAL, rate) for arm in KINDS if (rate := self._rate(arm)) != USUAL}
        self._run([Job(arm, KINDS[arm], "sweep", self._steps, SEEDS[1], r) for arm in doubtful for r in doubtful[arm]])

    def _jobs(self, part: str, seed: int) -> Iterable[Job]:
        kinds = VARIANTS.get(part, KINDS)
        return [
            Job(arm, kind, part, self._steps_of(arm, part), seed, self._rate(arm.split(",")[0]))
            for arm, kind in kinds.items()
            if not (part == "time" and arm == BASE) and not (part == "longer" and arm not in LONG)
        ]

    def _steps_of(self, arm: str, part: str) -> int:
        if part == "longer":
            return LONGER * self._steps
        if part != "time":
            return self._steps
        price = next(row["step_price"] for row in self.rows if row["arm"] == arm and row.get("step_price"))
        return round(self._steps / price)

    def _rate(self, arm: str) -> float:
        """The learning rate that a kind did best with on held-out answers, over its seeds; the usual one unless another
        is better by more than chance.
        """
        mine = self._swept(arm)
        if not mine:
            raise SystemExit(f"{arm} has no learning rate yet; run the part sweep first")
        sums: dict[float, list[float]] = defaultdict(list)
        for row in mine:
            sums[row["lr"]].append(row["validation"]["tau"] + row["validation"]["greedy_tau"])
        found = {rate: statistics.fmean(each) for rate, each in sums.items()}
        best = max(found, key=lambda rate: found[rate])
        return float(USUAL if found[best] - found.get(USUAL, 0.0) <= CHANCE else best)

    def _beyond(self, arm: str) -> list[float]:
        rates = {row["lr"] for row in self._swept(arm)}
        return {min(rates): [min(rates) / 2], max(rates): [2 * max(rates)]}.get(self._rate(arm), [])

    def _swept(self, arm: str) -> list[Row]:
        return [row for row in self.rows if row["arm"] == arm and "sweep" in row["tables"]]

    def _run(self, jobs: list[Job]) -> None:
        missing = [job for job in jobs if not job.made(self.rows)]
        if not missing:
            return
        gc.freeze()  # what workers share is not written to
        forked = multiprocessing.get_context("fork")
        with forked.Pool(self._workers, _work_for, (self._trainer.row,), maxtasksperchild=1) as pool:
            for row in pool.imap_unordered(_worked, missing, chunksize=1):
                self._keep(row)

    def _keep(self, row: Row) -> None:
        with JsonlWriter(self._path) as writer:
            writer.append([row])
        self.rows.append(row)
        held, real = row.get("validation"), row["decoded"]
        told = f"held out {held['tau']:.3f} {held['greedy_tau']:.3f}" if held else ""
        if real:
            told += "  decoded " + "  ".join(f"{name} {each['macro_tau']:.3f}" for name, each in real.items())
        fields = (f"{row['arm']:26s}", row["tables"][0], row["seed"], row.get("lr"), row.get("steps"))
        print(time.strftime("%H:%M:%S"), *fields, told, flush=True)


_work: list[Callable[[Job], Row]] = []  # what a worker was forked for


def _work_for(work: Callable[[Job], Row]) -> None:
    _work.append(work)


def _worked(job: Job) -> Row:
    return _work[0](job)


def rows_of(path: Path) -> list[Row]:
    """Those that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


TRAINED = ("lookup", "sweep", "tokens 0", "time 0", "tokens 1", "time 1", "lengths", "depth", "losses", "longer")
TIMED = ("speed", "shares")


def timed(path: Path, part: str, options: argparse.Namespace) -> None:
    """Add to the rows of the first seed what ``part`` times of the drafters that lie in the folder."""
    rows = rows_of(path)
    table, kinds = ("tokens", KINDS) if part == "speed" else ("lengths", {BASE: KINDS[BASE], **LENGTHS})
    found = {row["arm"]: row for row in rows if row["seed"] == 0 and table in row["tables"]}
    if lacking := [arm for arm in kinds if arm not in found]:
        raise SystemExit(f"nothing is trained yet of {', '.join(lacking)}; run the part {table} first")
    mine = [found[arm] for arm in kinds]
    folders = [path.parent / folder_of(row["arm"], row["tables"][0], row["seed"]) for row in mine]
    if part == "speed":
        asked = [word for domain in options.domain for word in ("--domain", domain)]
        asked += ["--limit", str(options.limit), "--max-tokens", str(options.max_tokens), "--dtype", options.dtype]
        add_speed([*mine, next(row for row in rows if row["arm"] == LOOKUP)], folders, asked)
    else:
        add_shares(mine, folders, options.dtype)
    rewrite(path, rows)


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--domain", action="append", required=True)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--examples", type=int, default=2400)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parts", nargs="*", default=TRAINED, choices=(*TRAINED, *TIMED))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "comparison.jsonl"
    if trained := [part for part in options.parts if part in TRAINED]:
        torch.set_num_threads(1)  # forked processes have no team of threads
        room = Room(options.responses.resolve(), Path(), options.examples, options.dtype)
        prompts = Prompts(room.packed, options.domain, options.limit, options.max_tokens)
        comparison = Comparison(Trainer(room, prompts, options.out), path, options.steps, options.workers)
        for part in trained:
            comparison.make(part)
    for part in TIMED:
        if part in options.parts:
            timed(path, part, options)


if __name__ == "__main__":
    main()
