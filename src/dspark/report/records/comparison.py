"""Drafters trained under equal conditions (comparison.jsonl, a row a run): who accepts more, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspark.report.figures import Section
from dspark.report.records.arms import Context, Decoded, Speed, Trial
from dspark.report.records.causes import cause_figures
from dspark.report.records.contrasts import equal_tables
from dspark.report.records.kind import Kind
from dspark.report.records.places import place_figures
from dspark.report.records.record import Record, bounds, count, known, number, numbers
from dspark.report.records.shapes import shape_figures
from dspark.report.records.speeds import speed_figures


def _read(record: Record) -> tuple[Trial, ...]:
    return tuple(map(_trial, record.rows))


def _trial(row: Mapping[str, Any]) -> Trial:
    held = row.get("validation") or {}  # a baseline that needs no training has none, nor what comes with it
    return Trial(
        arm=str(row["arm"]),
        tables=frozenset(map(str, row["tables"])),
        seed=count(row.get("seed") or 0),
        layers=number(row.get("layers")),
        block=number(row["block_size"]),
        lr=number(row.get("lr")),
        steps=number(row.get("steps")),
        tokens=number(row["tokens"]),
        seconds=number(row["seconds"]),
        head_share=number(row.get("head_share")),
        held_out=number(held.get("tau")),
        held_out_greedy=number(held.get("greedy_tau")),
        decoded={str(regime): _decoded(each) for regime, each in (row["decoded"] or {}).items()},
        speed={str(regime): _speed(each) for regime, each in (row.get("speed") or {}).items()},
    )


def _speed(row: Mapping[str, Any]) -> Speed:
    return Speed(number(row["speedup"]), bounds(row["interval"]), number(row["tau"]))


def _decoded(row: Mapping[str, Any]) -> Decoded:
    return Decoded(
        tau=number(row["tau"]),
        macro_tau=number(row["macro_tau"]),
        interval=bounds(row["tau_interval"]),
        domains={str(name): number(each["tau"]) for name, each in row["domains"].items()},
        rates=numbers(row["conditional_acceptance"]),
        reached=tuple(map(count, row["reached"])),
        contexts=tuple(map(_context, row["contexts"])),
    )


def _context(row: Mapping[str, Any]) -> Context:
    return Context(number(row["from"]), number(row["to"]), number(row["tau"]), count(row["rounds"]))


def _section(files: Sequence[tuple[Trial, ...]]) -> Section:
    trials = [trial for each in files for trial in each]
    makers = (equal_tables, speed_figures, cause_figures, place_figures, shape_figures)
    return Section("Drafters under equal conditions", tuple(figure for make in makers for figure in make(trials)))


def _facts(record: Record) -> dict[str, str]:
    arms = dict.fromkeys(str(row["arm"]) for row in record.rows)
    seeds = sorted({trial.seed for trial in _read(record)})
    facts = {"runs": str(len(record.rows)), "arms": "; ".join(arms), "seeds": ", ".join(map(str, seeds))}
    return facts | known(record.data, ("target", "dtype", "date", "settings", "machine"))


COMPARISON = Kind(
    "comparison",
    (frozenset({"record", "arm", "tables"}),),
    "drafters trained under equal conditions: tables at equal tokens and equal time, measured speed-up, longer"
    " training, acceptance by position (Fig. 2), depth (Fig. 3), lengths (Fig. 4) and contexts",
    "python benchmarks/compare_drafters.py",
    _read,
    _section,
    _facts,
)
