"""`dspark eval --json`: tau, speed and identity of one or several drafters, by domain (the main table)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspark.report.figures import Axis, Between, Column, Figure, Line, Panel, Point, Section, Table, numbered
from dspark.report.records.kind import Kind
from dspark.report.records.positions import Acceptance, acceptance_panel, acceptance_table
from dspark.report.records.record import Record, bounds, count, drafter_name, known, number, numbers
from dspark.report.records.regime import Same, regime_of

ALL, MACRO = "all", "macro"


@dataclass(frozen=True)
class Part:
    """What one drafter did on a domain or benchmark, or on all prompts."""

    name: str
    prompts: int
    tau: Between
    speedup: Between
    tok_s: float
    plain_tok_s: float
    same: Same | None
    repeats: float
    """Share of tokens inside verbatim repeats, which any drafter foresees, and tau without them."""
    tau_without_repeats: float
    benchmark: bool = False


@dataclass(frozen=True)
class Drafter:
    """All parts of one drafter's evaluation, everything together last."""

    name: str
    parts: tuple[Part, ...]
    macro_tau: float
    lookup: tuple[float, float]
    """tau and speed-up of prompt lookup alone, on the same prompts."""
    acceptance: Acceptance

    @property
    def all(self) -> Part:
        """On all prompts."""
        return self.parts[-1]


@dataclass(frozen=True)
class Evaluation:
    """Drafters on the same prompts in one way of sampling."""

    regime: str
    target: str
    drafters: tuple[Drafter, ...]


def _read(record: Record) -> Evaluation:
    data = record.data
    rows = data.get("drafters", [data])
    return Evaluation(_regime(data), str(data["target"]), tuple(map(_drafter, rows)))


def _regime(data: Mapping[str, Any]) -> str:
    drafts = "as many drafts as pay" if data["planned"] else "every draft verified"
    more = "" if data["lookup"] else ", no lookup"
    coupled = "coupled, " if data["coupled"] else ""
    return f"{coupled}{regime_of(data['sampling'])}, {drafts}{more}, {data['dtype']}"


def _drafter(row: Mapping[str, Any]) -> Drafter:
    benchmarks, parts = row.get("benchmarks", {}), []
    for domain, figures in row["domains"].items():
        parts += [_part(name, each) for name, each in benchmarks.items() if each["domain"] == domain]
        parts.append(_part(domain, figures))
    reached = tuple(map(count, row["reached"]))
    name = drafter_name(str(row["drafter"]))
    acceptance = Acceptance(name, numbers(row["conditional_acceptance"]), reached)
    lookup = number(row["ngram_tau"]), number(row["ngram_speedup"])
    return Drafter(name, (*parts, _part(ALL, row)), number(row["macro_tau"]), lookup, acceptance)


def _part(name: str, row: Mapping[str, Any]) -> Part:
    within = row["intervals"]
    return Part(
        name,
        count(row["prompts"]),
        Between(number(row["tau"]), *bounds(within["tau"])),
        Between(number(row["speedup"]), *bounds(within["speedup"])),
        number(row["tok_s"]),
        number(row["plain_tok_s"]),
        Same.of(row.get("identical")),
        number(row["repeat_share"]),
        number(row["tau_without_repeats"]),
        benchmark="domain" in row,
    )


def _section(evaluations: Sequence[Evaluation]) -> Section:
    figures = [figure for i, each in enumerate(evaluations) for figure in (_main(i, each), _positions(i, each))]
    return Section("Drafters on prompts", tuple(figures))


def _main(index: int, one: Evaluation) -> Figure:
    columns = ("drafter", "prompts of", "prompts", "tau", "speed-up", "tok/s", "plain tok/s", "identical")
    digits = {"tok/s": 1, "plain tok/s": 1}
    rows = [row for drafter in one.drafters for row in _rows(drafter)]
    lookup = one.drafters[0].lookup
    rows.append(("prompt lookup", ALL, one.drafters[0].all.prompts, lookup[0], lookup[1], *(None,) * 5))
    head = (*(Column(name, digits.get(name, 2)) for name in columns), Column("in repeats, %", 0), Column("tau without"))
    return Figure(
        numbered("evaluation", index),
        f"{one.target}: {one.regime}",
        "Tokens gained a round (tau), the target's own included, and tokens a second over plain decoding's, with 95 %"
        " intervals over prompts; identical: texts that equal plain decoding's; in repeats: the share of tokens inside"
        " verbatim repeats, which any drafter foresees, and tau without them.",
        Table(head, tuple(rows), heads=2),
        (_by_part(one, "tau"), _by_part(one, "speedup")),
        open=True,
    )


def _rows(drafter: Drafter) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        (
            *(drafter.name, part.name, part.prompts, part.tau, part.speedup, part.tok_s, part.plain_tok_s),
            *(part.same.said if part.same else None, 100 * part.repeats, part.tau_without_repeats),
        )
        for part in drafter.parts
    ]
    rows.insert(-1, (drafter.name, MACRO, None, drafter.macro_tau, *(None,) * 6))
    return rows


def _by_part(one: Evaluation, name: str) -> Panel:
    """tau or speed-up of each domain: drafters one below the other, each with its interval."""
    parts = [part.name for part in one.drafters[0].parts if not part.benchmark]
    apart = min(0.22, 0.7 / len(one.drafters))
    lines = []
    for i, drafter in enumerate(one.drafters):
        aside = apart * ((len(one.drafters) - 1) / 2 - i)
        mine = {part.name: getattr(part, name) for part in drafter.parts if not part.benchmark}
        found = [(aside - at, mine[part]) for at, part in enumerate(parts) if part in mine]
        points = tuple(Point(each.value, at, each.low, each.high) for at, each in found)
        lines.append(Line(drafter.name, points, "marks"))
    label = {"tau": "tau, tokens a round", "speedup": "times plain decoding's tokens a second"}[name]
    y = Axis("", reaches=(0.5, 0.5 - len(parts)), ticks=tuple((-at, part) for at, part in enumerate(parts)))
    return Panel("", Axis(label, reaches=(1.0,)), y, tuple(lines), level=1.0, across=True)


def _positions(index: int, one: Evaluation) -> Figure:
    acceptances = [drafter.acceptance for drafter in one.drafters]
    return Figure(
        numbered("evaluation-acceptance", index),
        f"Acceptance by position (Fig. 2): {one.regime}",
        "How often the draft at each position is accepted, given that those before it were, of the drafter's own"
        " rounds; hollow: reached in fewer than 200 rounds, reported and not judged.",
        acceptance_table(acceptances),
        (acceptance_panel("", acceptances),),
    )


def _facts(record: Record) -> dict[str, str]:
    data = record.data
    names = ("target", "drafter", "dtype", "weights", "device", "max_tokens", "seed", "planned", "lookup")
    drafters = [each["drafter"] for each in data.get("drafters", [])]
    facts = known({**data, "drafter": drafters or data.get("drafter")}, names)
    facts["sampling"] = regime_of(data["sampling"])
    return facts | known(data, ("prompts", "limit", "files", "kept")) | known(data.get("machine", {}), data["machine"])


EVALUATION = Kind(
    "evaluation",
    (frozenset({"tau", "macro_tau", "domains", "conditional_acceptance"}),),
    "the main table: tau, speed-up and identical texts by domain, and acceptance by position (Fig. 2)",
    "dspark eval --prompts FILE --json eval.json",
    _read,
    _section,
    _facts,
)
