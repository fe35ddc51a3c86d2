"""All kinds of drafters trained under equal conditions, and what each then gains: equal tokens, equal time.

    python benchmarks/compare_drafters.py --responses corpus/smollm2-135m.xz --out FOLDER
        --domain math=FILE --domain code=FILE --domain chat=FILE [--limit 10] [--parts sweep tokens time ...]

Every kind starts from the target's own last layers and sees the same answers in the same order, with as many taught
slots a sequence. ``sweep`` finds each kind's learning rate (held-out answers decide, never the prompts of the domains);
``tokens`` gives each as many steps, ``time`` as many as DSpark's steps take, by prices timed in turn; ``depth`` and
``lengths`` vary DSpark's layers and block, ``losses`` gives DFlash what DSpark learns with. What was trained decodes
the prompts for real, whole blocks of its own, greedy and at temperature 1. Rows go to FOLDER/comparison.jsonl as soon
as they are there, a run that has its row is not made again; drafters of the two tables stay in FOLDER.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import Arm, Room, Run, relative, validated

from dspark.cli.eval_prompts import Dialogue, asked_of_files, domains_of
from dspark.cli.pair import load_beside
from dspark.decoding.engine import BLOCK, Engine, Limits
from dspark.decoding.modes import LOOKUP_BLOCK, Mode
from dspark.decoding.request import Completion, Request
from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.drafter import Drafter
from dspark.evaluation.intervals import interval
from dspark.evaluation.summary import tau_of
from dspark.foundation.records import JsonlWriter
from dspark.speculation.acceptance import Round, RoundTally
from dspark.speculation.sampling import Sampling
from dspark.targets.model import Target

BASE = "DSpark vanilla"
SLOTS = 84  # taught, of a sequence in a step
RATES = (7.5e-4, 1.5e-3, 3.0e-3)
SEEDS = (0, 1)
SAMPLINGS = {"greedy": Sampling(), "temperature 1": Sampling(1.0)}
CONTEXTS = (0, 128, 256, 512, 2048)  # edges, in tokens before the anchor
LOOKUP = "prompt lookup"


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
DEPTH = {f"{BASE}, {n} layer{'s' * (n > 1)}": replace(KINDS[BASE], layers=n) for n in (1, 2)}
LENGTHS = {f"{BASE}, K = {k}": replace(KINDS[BASE], block=k) for k in (3, 11, 15)}
_AS_DSPARK = (LATER, "loss.hard_ce=0.0", "loss.soft_ce=0.5", "loss.l1=1.0")
LOSSES = {"DFlash, DSpark's losses": replace(KINDS["DFlash"], settings=_AS_DSPARK)}
VARIANTS = {"depth": DEPTH, "lengths": LENGTHS, "losses": LOSSES}


class Prompts:
    """What is decoded, by domain."""

    def __init__(self, target: Target, domains: Sequence[str], limit: int, max_tokens: int) -> None:
        self._target, self._max_tokens = target, max_tokens
        asked = asked_of_files(domains_of([], list(domains)), limit)
        self._tasks = [Dialogue.of(each).task(target.chat, 0) for each in asked]
        self._domain = {task.key[0] + task.id: task.domain for task in self._tasks}

    def decoded(self, drafter: Drafter | None) -> dict[str, Any]:
        """Figures by sampling; without a drafter those of prompt lookup."""
        return {name: self._figures(self._answers(drafter, sampling)) for name, sampling in SAMPLINGS.items()}

    def _answers(self, drafter: Drafter | None, sampling: Sampling) -> list[Completion]:
        requests = [Request(t.key[0] + t.id, t.prompt_ids, sampling, t.seed, self._max_tokens) for t in self._tasks]
        longest = max(len(each.prompt_ids) for each in requests) + self._max_tokens + 2 * BLOCK
        limits, mode = Limits(len(requests), len(requests) * longest), _mode(drafter)
        return list(Engine(self._target, requests, limits, mode, drafter, lookup=mode == "ngram").run())

    def _figures(self, answers: Sequence[Completion]) -> dict[str, Any]:
        whole, domains, contexts = RoundTally(), defaultdict(RoundTally), defaultdict(RoundTally)
        sums: dict[str, list[list[float]]] = defaultdict(list)
        for answer in answers:
            domain = self._domain[answer.request.id]
            for context, each in _placed(answer):
                for tally in (whole, domains[domain], contexts[context]):
                    tally.add(each)
            gained = len(answer.output_ids) - len(answer.rounds[0].tokens)
            sums[domain].append([gained, len(answer.rounds) - 1])
        return {
            "tau": whole.tau,
            "macro_tau": float(np.mean([each.tau for each in domains.values()])),
            "tau_interval": interval([np.array(each, dtype=np.float64) for each in sums.values()], tau_of),
            "rounds": whole.rounds,
            "prompts": len(answers),
            "domains": {name: {"tau": each.tau, "rounds": each.rounds} for name, each in sorted(domains.items())},
            "conditional_acceptance": whole.conditional_acceptance,
            "reached": whole.observed_at,
            "contexts": [
                {"from": first, "to": last, "tau": contexts[first].tau, "rounds": contexts[first].rounds}
                for first, last in zip(CONTEXTS, CONTEXTS[1:], strict=False)
                if contexts[first].rounds
            ],
        }


def _mode(drafter: Drafter | None) -> Mode:
    return "ngram" if drafter is None else "dspark"


def _placed(answer: Completion) -> Iterator[tuple[int, Round]]:
    """Rounds with the lower edge of their context."""
    length = len(answer.request.prompt_ids)
    for each in answer.rounds:
        yield max(edge for edge in CONTEXTS if edge <= length), each
        length += len(each.tokens)


class Comparison:
    """The rows of a folder, and how they come about."""

    def __init__(self, room: Room, prompts: Prompts, folder: Path, steps: int) -> None:
        self._room, self._prompts, self._folder, self._steps = room, prompts, folder, steps
        self._path = folder / "comparison.jsonl"
        self.rows = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def sweep(self) -> None:
        """Short runs of every kind with every learning rate."""
        for name, kind in KINDS.items():
            for rate in RATES:
                self._row(name, kind, "sweep", self._steps // 3, 0, rate)

    def rate(self, name: str) -> float:
        """The learning rate that a kind did best with on held-out answers."""
        mine = [row for row in self.rows if row["arm"] == name and row["tables"] == ["sweep"]]
        if not mine:
            raise SystemExit(f"{name} has no learning rate yet; run the part sweep first")
        best = max(mine, key=lambda row: row["validation"]["tau"] + row["validation"]["greedy_tau"])
        return float(best["lr"])

    def tables(self, table: str, seed: int) -> None:
        """Every kind with one seed. DSpark vanilla's run belongs to both tables."""
        for name, kind in KINDS.items():
            steps = self._steps
            if table == "time" and name != BASE:
                steps = round(steps / self._price(name, kind))
            self._row(name, kind, table, steps, seed, self.rate(name))

    def variants(self, part: str) -> None:
        """What varies one thing, with as many steps and one seed."""
        for name, kind in VARIANTS[part].items():
            self._row(name, kind, part, self._steps, 0, self.rate(name.split(",")[0]))

    def lookup(self) -> None:
        """The baseline that needs no training."""
        if not any(row["arm"] == LOOKUP for row in self.rows):
            row = {"record": "comparison", "arm": LOOKUP, "tables": ["tokens", "time"], "kind": "ngram"}
            row |= {"layers": None, "block_size": LOOKUP_BLOCK, "seed": None, "tokens": 0, "seconds": 0.0}
            self._keep(row | {"decoded": self._prompts.decoded(None)})

    def _price(self, name: str, kind: Kind) -> float:
        """A step's time in steps of DSpark vanilla: from an earlier row, or timed in turn."""
        known = [row["step_price"] for row in self.rows if row["arm"] == name and row.get("step_price")]
        if known:
            return float(known[0])
        return 1.0 if name == BASE else relative(self._room, kind.arm(0, RATES[0]), KINDS[BASE].arm(0, RATES[0]))

    def _row(self, name: str, kind: Kind, part: str, steps: int, seed: int, rate: float) -> None:
        tables = ["tokens", "time", "depth", "lengths"] if name == BASE and part in ("tokens", "time") else [part]
        if any(
            (row["arm"], row["tables"], row["seed"], row.get("lr")) == (name, tables, seed, rate) for row in self.rows
        ):
            return
        price = self._price(name, kind)
        run, tokens = Run(self._room, kind.arm(seed, rate), steps), 0
        started = time.process_time()
        while run.learner.step < steps:
            tokens += run.learn()["answer_tokens"]
        row = {
            "record": "comparison",
            "arm": name,
            "tables": tables,
            "kind": run.learner.drafter.config.kind,
            "layers": kind.layers,
            "block_size": kind.block,
            "seed": seed,
            "lr": rate,
            "steps": steps,
            "step_price": price,
            "tokens": int(tokens),
            "seconds": time.process_time() - started,
            "validation": asdict(validated(self._room, run.learner.drafter)),
        }
        self._keep(row | {"decoded": None if part == "sweep" else self._decoded(run, f"{name} {part} {seed}")})

    def _decoded(self, run: Run, name: str) -> dict[str, Any]:
        folder = self._folder / name.replace(" ", "-").replace(",", "").replace("'", "")
        recipe = run.learner.recipe
        export = getattr(torch, recipe.drafter.export_dtype)
        save_drafter(folder, run.learner.drafter, self._room.packed.identity, dtype=export)
        return self._prompts.decoded(load_beside(self._room.packed, folder))

    def _keep(self, row: dict[str, Any]) -> None:
        with JsonlWriter(self._path) as writer:
            writer.append([row])
        self.rows.append(row)
        gc.collect()  # the caches that it was decoded with
        held, real = row.get("validation"), row["decoded"]
        told = f"held out {held['tau']:.3f} {held['greedy_tau']:.3f}" if held else ""
        if real:
            told += "  decoded " + "  ".join(f"{name} {each['macro_tau']:.3f}" for name, each in real.items())
        fields = (f"{row['arm']:26s}", "/".join(row["tables"]), row["seed"], row.get("lr"), row.get("steps"))
        print(*fields, told, flush=True)


PARTS = ("lookup", "sweep", "tokens 0", "time 0", "losses", "lengths", "depth", "tokens 1", "time 1")


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
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    room = Room(options.responses.resolve(), Path(), options.examples, options.dtype)
    prompts = Prompts(room.packed, options.domain, options.limit, options.max_tokens)
    comparison = Comparison(room, prompts, options.out, options.steps)
    for part in options.parts:
        name, _, seed = part.partition(" ")
        if seed:
            comparison.tables(name, int(seed))
        elif name in VARIANTS:
            comparison.variants(name)
        else:
            getattr(comparison, name)()


if __name__ == "__main__":
    main()
