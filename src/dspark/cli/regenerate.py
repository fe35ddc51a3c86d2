"""`dspark data regenerate`: answers by the target itself."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import BUNDLED, DeviceOption, DtypeOption, JsonOption, SeedOption, TargetOption, writable
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.data.prompts import Prompt
    from dspark.data.regenerate import Regenerated
    from dspark.targets.model import Target

_RECOMMENDED = "the target's recommended one"


def regenerate(
    prompts: Annotated[list[Path], typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            callback=writable("--out"),
            help="Answers, JSONL; those it holds already are kept.",
        ),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="FILE...", help="Drop prompts that overlap these evaluation prompts."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N prompts.")] = None,
    target: TargetOption = BUNDLED,
    temperature: Annotated[
        float | None, typer.Option("--temperature", show_default=_RECOMMENDED, help="0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", show_default=_RECOMMENDED, help="0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", show_default=_RECOMMENDED, help="1 is off.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")] = 512,
    max_prompt: Annotated[
        int, typer.Option("--max-prompt", min=1, help="Longer prompts, in tokens, are left out and counted.")
    ] = 512,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests decoded at once.")] = 32,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Answer prompts with the target itself.

    Killed and started again it goes on with what is missing.
    """
    from dspark.cli.pair import load_quietly
    from dspark.data.regenerate import regenerate as answer
    from dspark.foundation.artifacts import write_json

    chosen = _chosen(temperature, top_k, top_p)
    kept, dropped = _read(prompts, against)
    model = load_quietly(target, dtype, device)
    result = answer(
        model,
        kept[:limit],
        out,
        sampling=replace(model.recommended, **chosen),
        max_tokens=max_tokens,
        seed=seed,
        slots=slots,
        max_prompt=min(max_prompt, _room(model, max_tokens)),
    )
    print(_summary(result))
    if json is not None:
        write_json(json, asdict(result) | {"dropped": dropped, "target": model.name, "out": str(out)})


def _chosen(temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """The settings that were given; a bad number is refused here, before a model is loaded."""
    from dspark.speculation.sampling import Sampling

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    Sampling(**chosen)
    return chosen


def _read(prompts: list[Path], against: list[Path] | None) -> tuple[list[Prompt], int]:
    """Prompts without those that overlap the evaluation's, and how many those were."""
    from dspark.data.overlap import without_overlap
    from dspark.data.prompts import read_prompts

    rows = read_prompts(prompts)
    if not against:
        return rows, 0
    # Evaluation files may share ids with each other; only their texts matter here.
    others = [other for path in against for other in read_prompts([path])]
    kept = without_overlap(rows, others)
    dropped = len(rows) - len(kept)
    print(f"{dropped} of {len(rows)} prompts overlap the evaluation prompts and were dropped")
    return kept, dropped


def _room(model: Target, max_tokens: int) -> int:
    room = model.max_positions - max_tokens
    if room < 1:
        raise UserError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: the context of {model.name} holds"
            f" {model.max_positions}; use fewer"
        )
    return room


def _summary(result: Regenerated) -> str:
    return (
        f"{result.responses} answers, {result.tokens} tokens ({result.tok_s:.1f} tokens/s);"
        f" {result.already_done} were there before, {result.too_long} prompts are too long,"
        f" {result.later_turns} have later turns, which were left out"
    )
