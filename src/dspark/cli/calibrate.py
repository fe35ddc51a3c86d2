"""`dspark calibrate`: confidence that means what it says."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import (
    BUNDLED,
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
    from dspark.calibration.choose import Split
    from dspark.calibration.record import Recorded
    from dspark.decoding.request import Request
    from dspark.drafters.drafter import Drafter
    from dspark.speculation.confidence import Calibrations, ConfidenceMap
    from dspark.speculation.sampling import Sampling
    from dspark.targets.model import Target

_BEST = "best"

JudgeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--judge", metavar="FILE...", help="Prompts that no map is fitted to: these judge, each file by itself too."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        callback=writable("--out"),
        show_default="calibration.json in the drafter's folder",
        help="Where the maps go; those of other samplings in it are kept. Decoding reads those in a drafter's folder.",
    ),
]


def _folder(path: Path | None) -> Path | None:
    """Make a folder for plots, or refuse the place, before hours of work and not after."""
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--plots {path} can't be made ({error.strerror}); give a folder's path") from error
        writable("--plots")(path / "reliability.svg")
    return path


PlotsOption = Annotated[
    Path | None,
    typer.Option(
        "--plots",
        metavar="DIR",
        callback=_folder,
        help="Draw reliability.svg and thresholds.svg there, of the rounds that judge.",
    ),
]
MapOption = Annotated[
    str,
    typer.Option(
        "--map", help="best (on prompts left out of the fit), temperatures (STS), platt, isotonic or logistic."
    ),
]
RoundsOption = Annotated[
    Path | None,
    typer.Option(
        "--rounds",
        metavar="FILE.npz",
        callback=writable("--rounds"),
        help="Keep the recorded rounds: logits, peaks, accepted, oracle, prompt, and which of them judge.",
    ),
]


def calibrate(
    prompts: Annotated[list[Path], typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL.")],
    judge: JudgeOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only N prompts to fit to, and N a --judge file.")
    ] = None,
    kind: MapOption = _BEST,
    raw: RawOption = False,
    out: OutOption = None,
    rounds: RoundsOption = None,
    plots: PlotsOption = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Answers under way at once.")] = 32,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Fit what the drafter's confidence really means, for one way of sampling.

    Answers the prompts with every draft verified and fits maps: to one half of them, judged on the other, or to all,
    judged on the prompts of --judge. The map without a fit, the maps with one and a constant are shown side by side.
    """
    from dspark.calibration.choose import FITS, Split, best_kind, compare
    from dspark.cli.machine import load_now
    from dspark.cli.pair import load_drafting, resolve_drafter
    from dspark.drafters.checkpoint import CALIBRATION
    from dspark.foundation.artifacts import write_json
    from dspark.speculation.sampling import Sampling

    if kind not in (_BEST, *FITS):
        raise UserError(f"--map is {kind!r}; expected {_BEST}, {', '.join(FITS)}")
    load, sampling = load_now(), Sampling(temperature, top_k, top_p)
    file = out or resolve_drafter(drafter) / CALIBRATION
    writable("--out")(file)
    sets = _sets(prompts, judge)
    loaded, model = load_drafting(target, drafter, dtype, device)
    loaded.chat.raw = raw
    known = _known(file, model.config.block_size)
    answers = [_requests(loaded, files, limit, sampling, seed, max_tokens) for files in sets]
    _check(answers, bool(judge))
    recorded = _record(loaded, model, [each for some in answers for each in some], slots)
    others = {each.stem: len(some) for each, some in zip(judge or [], answers[1:], strict=True)}
    split = Split.of(recorded, len(answers[0]), others)
    chosen = best_kind(split.fitted) if kind == _BEST else kind
    figures = {"rounds": len(recorded)} | compare(split, chosen)
    kept = split.fitted.outcomes if judge else recorded.outcomes
    write_json(file, known.with_regime(sampling, FITS[chosen](kept), kept.survival).asdict())
    if rounds is not None:
        recorded.save(rounds, split.judge)
    _print(figures, file)
    figures |= _curves(FITS[chosen](split.fitted.outcomes), split, plots, f"{loaded.name}, {_name(sampling)}")
    if json is not None:
        settings = {"sampling": vars(sampling), "max_tokens": max_tokens, "seed": seed, "raw": raw, "drafter": drafter}
        write_json(json, figures | settings | _circumstances(loaded, load, prompts, judge or []))


def _circumstances(target: Target, load: str, prompts: list[Path], judge: list[Path]) -> dict[str, Any]:
    """What was measured with, and on what."""
    from dspark.cli.machine import machine_facts

    files = {"prompts": [*map(str, prompts)], "judge": [*map(str, judge)]}
    dtype = str(target.precision).removeprefix("torch.")
    return files | {"target": target.name, "dtype": dtype, "machine": machine_facts(target.device, load)}


def _sets(prompts: list[Path], judge: list[Path] | None) -> list[list[Path]]:
    """Files that are read together: those to fit to, then each that judges; its name is that of its figures."""
    stems = [each.stem for each in judge or []]
    if len(set(stems)) < len(stems):
        raise UserError(f"two files of --judge have the same name ({', '.join(stems)}); rename one of them")
    return [prompts, *([each] for each in judge or [])]


def _name(sampling: Sampling) -> str:
    if sampling.greedy:
        return "greedy"
    more = f", top-k {sampling.top_k}" * bool(sampling.top_k) + f", top-p {sampling.top_p:g}" * (sampling.top_p < 1)
    return f"temperature {sampling.temperature:g}{more}"


def _known(file: Path, block: int) -> Calibrations:
    """The maps that a file has already; what can't be read is replaced, and said."""
    from dspark.foundation.artifacts import read_json
    from dspark.speculation.confidence import Calibrations

    if not file.is_file():
        return Calibrations()
    try:
        return Calibrations.read(read_json(file), block, str(file))
    except UserError as error:
        print(f"replaced: {error}")
        return Calibrations()


def _requests(
    target: Target, files: list[Path], limit: int | None, sampling: Sampling, seed: int, max_tokens: int
) -> list[Request]:
    from dspark.data.prompts import read_in_turn
    from dspark.decoding.request import Request

    requests = []
    for prompt in read_in_turn(files, limit):
        own = int.from_bytes(hashlib.sha256(f"{seed}/{prompt.id}".encode()).digest()[:7], "big")
        ids = target.chat.prompt_ids(prompt.first_messages())
        if len(ids) + max_tokens < target.max_positions:
            requests.append(Request(prompt.id, ids, sampling, own, max_tokens))
    requests.sort(key=lambda request: request.seed)  # a hash: each half gets a share of every file
    return requests


def _check(answers: list[list[Request]], judged: bool) -> None:
    """Refuse prompts too few to be judged, and those that would judge a fit to themselves."""
    least = 1 if judged else 2
    if min(map(len, answers)) < least:
        counts = ", ".join(str(len(some)) for some in answers)
        raise UserError(
            f"{counts} of the prompts fit the target's context; expected at least {least}"
            + (" of each file of --judge and of --prompts" if judged else ", one a half")
        )
    fitted = {tuple(each.prompt_ids) for each in answers[0]}
    twice = [each.id for some in answers[1:] for each in some if tuple(each.prompt_ids) in fitted]
    if twice:
        raise UserError(f"{len(twice)} prompts of --judge are among --prompts, {twice[0]!r} for one; take them out")


def _record(target: Target, drafter: Drafter, requests: list[Request], slots: int) -> Recorded:
    from dspark.calibration.record import record
    from dspark.decoding.engine import BLOCK, Limits
    from dspark.foundation.progress import progress

    requests = [replace(each, id=f"{number}") for number, each in enumerate(requests)]  # ids of two files may be alike
    longest = max(len(each.prompt_ids) + each.max_tokens for each in requests)
    most = min(slots, len(requests))
    limits = Limits(most, cache_tokens=most * (longest + 2 * BLOCK))
    with progress(len(requests), "calibrate", "answers") as bar:
        return record(target, drafter, requests, limits, lambda done: bar.advance(1))


def _curves(chosen: ConfidenceMap, split: Split, folder: Path | None, title: str) -> dict[str, Any]:
    """Reliability and the sweep of a threshold, before and after the fit, and their plots where they are wanted."""
    from dspark.calibration.choose import survival_through, tilted
    from dspark.calibration.curves import reliability, threshold_sweep
    from dspark.speculation.confidence import untouched

    judged = split.judging.outcomes
    maps = {"before": untouched(judged.block), "chosen": chosen}
    survival = {name: survival_through(each, judged) for name, each in maps.items()}
    survival["tilted"] = tilted(chosen, split.judging)
    reliable = {name: reliability(each, judged) for name, each in survival.items()}
    swept = {name: threshold_sweep(each, judged) for name, each in maps.items()}
    if folder is not None:
        from dspark.report.plots import reliability_plot, threshold_plot

        before, chosen_one, tilted_one = reliable.values()
        reliability_plot(folder / "reliability.svg", before, chosen_one, tilted_one, title)
        threshold_plot(folder / "thresholds.svg", swept["before"], swept["chosen"], title)
    return {"reliability": reliable, "thresholds": swept}


def _print(figures: dict[str, Any], file: Path) -> None:
    rounds, others, kind = figures["rounds"], figures["judged_rounds"], figures["chosen"]["kind"]
    print(f"{rounds} rounds, judged on {others} of other prompts; kept: {kind}")
    rows = {"as trained": figures["before"], **figures["maps"], f"{kind}, tilted": figures["tilted"]}
    rows |= {"constant": figures["constant"], "oracle": figures["oracle"]}
    table = (("ECE", "ece"), ("perfect", "perfect_ece"), ("Brier", "brier"), ("log-loss", "log_loss"), ("AUC", "auc"))
    for label, key in table:
        for name, column in rows.items():
            cells = ("-" if math.isnan(value) else f"{value:.3f}" for value in column[key])
            print(f"{label:8} {name:20}" + "".join(f"{cell:>8}" for cell in cells))
    print(f"confidence map: {file}")
