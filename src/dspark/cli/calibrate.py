"""`dspark calibrate`: confidence that means what it says."""

from __future__ import annotations

import hashlib
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
    SeedOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    writable,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.calibration.record import Recorded
    from dspark.decoding.request import Request
    from dspark.drafters.dspark import DSparkDrafter
    from dspark.speculation.confidence import Calibrations, ConfidenceMap
    from dspark.speculation.sampling import Sampling
    from dspark.targets.model import Target

_BEST = "best"

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
RoundsOption = Annotated[
    Path | None,
    typer.Option(
        "--rounds",
        metavar="FILE.npz",
        callback=writable("--rounds"),
        help="Keep the recorded rounds: logits, accepted, oracle, prompt.",
    ),
]


def calibrate(
    prompts: Annotated[list[Path], typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL.")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only N prompts, of the files in turn.")] = None,
    kind: Annotated[
        str, typer.Option("--map", help="best (on prompts left out of the fit), temperatures (STS), platt or isotonic.")
    ] = _BEST,
    out: OutOption = None,
    rounds: RoundsOption = None,
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

    Answers the prompts with every draft verified, fits maps to one half of them and judges these on the other, where
    the map without a fit, the maps with one and a constant are shown side by side.
    """
    from dspark.calibration.choose import FITS
    from dspark.cli.pair import load_drafting, resolve_drafter
    from dspark.drafters.checkpoint import CALIBRATION
    from dspark.foundation.artifacts import write_json
    from dspark.speculation.sampling import Sampling

    if kind not in (_BEST, *FITS):
        raise UserError(f"--map is {kind!r}; expected {_BEST}, {', '.join(FITS)}")
    sampling, file = Sampling(temperature, top_k, top_p), out or resolve_drafter(drafter) / CALIBRATION
    writable("--out")(file)
    loaded, model = load_drafting(target, drafter, dtype, device)
    known = _known(file, model.config.block_size)
    recorded = _record(loaded, model, _requests(loaded, prompts, limit, sampling, seed, max_tokens), slots)
    if rounds is not None:
        recorded.save(rounds)
    figures, chosen = _judge(recorded, kind)
    write_json(file, replace(known, maps={**known.maps, sampling: chosen}).asdict())
    _print(figures)
    print(f"confidence map: {file}")
    if json is not None:
        settings = {"sampling": vars(sampling), "max_tokens": max_tokens, "seed": seed, "drafter": drafter}
        write_json(json, figures | settings | {"prompts": [str(each) for each in prompts]})


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
    if len(requests) < 2:
        raise UserError(f"{len(requests)} of the prompts fit the target's context; expected at least two, one a half")
    return requests


def _record(target: Target, drafter: DSparkDrafter, requests: list[Request], slots: int) -> Recorded:
    from dspark.calibration.record import record
    from dspark.decoding.engine import BLOCK, Limits
    from dspark.foundation.progress import progress

    longest = max(len(each.prompt_ids) + each.max_tokens for each in requests)
    most = min(slots, len(requests))
    limits = Limits(most, cache_tokens=most * (longest + 2 * BLOCK))
    with progress(len(requests), "calibrate", "answers") as bar:
        return record(target, drafter, requests, limits, lambda done: bar.advance(1))


def _judge(recorded: Recorded, kind: str) -> tuple[dict[str, Any], ConfidenceMap]:
    """Figures of fits to one half on the other, and the map to keep: the chosen kind, fitted to all rounds."""
    from dspark.calibration.choose import FITS, best_kind, columns, constant_survival, judged, scores_of
    from dspark.calibration.fits import fit_temperatures
    from dspark.speculation.confidence import untouched

    fitted, other = recorded.half(odd=False), recorded.half(odd=True)
    if not len(fitted) or not len(other):
        raise UserError("all whole rounds belong to one half of the prompts; give more prompts")
    chosen = best_kind(fitted) if kind == _BEST else kind
    maps = {name: judged(fit(fitted.outcomes), other.outcomes) for name, fit in FITS.items()}
    figures = {
        "rounds": len(recorded),
        "judged_rounds": len(other),
        "temperatures": list(fit_temperatures(fitted.outcomes).temperatures),
        "before": judged(untouched(recorded.outcomes.block), other.outcomes),
        "after": maps["temperatures"],
        "chosen": {"kind": chosen, **maps[chosen]},
        "maps": maps,
        "constant": columns(scores_of(constant_survival(fitted.outcomes, len(other)), other.outcomes)),
        "oracle": columns(scores_of(other.oracle.cumprod(axis=1), other.outcomes)),
    }
    return figures, FITS[chosen](recorded.outcomes)


def _print(figures: dict[str, Any]) -> None:
    rounds, others, kind = figures["rounds"], figures["judged_rounds"], figures["chosen"]["kind"]
    print(f"{rounds} rounds, judged on {others} of other prompts; kept: {kind}")
    rows = {"as trained": figures["before"], **figures["maps"], "constant": figures["constant"]}
    rows["oracle"] = figures["oracle"]
    for label, key in (("ECE", "ece"), ("perfect", "perfect_ece"), ("Brier", "brier"), ("AUC", "auc")):
        for name, column in rows.items():
            print(f"{label:8} {name:13}" + "".join(f"{value:8.3f}" for value in column[key]))
