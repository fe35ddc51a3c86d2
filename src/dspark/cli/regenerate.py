"""`dspark data regenerate`: answers by the target itself."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import (
    BUNDLED,
    DeviceOption,
    DtypeOption,
    JsonOption,
    RawOption,
    SeedOption,
    TargetOption,
    writable,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.data.answering import Answerer
    from dspark.data.prompts import Prompt
    from dspark.data.regenerate import Regenerated
    from dspark.targets.card import Card
    from dspark.targets.model import Target

_RECOMMENDED = "the target's recommended one"
_SHOWN = 5  # failures that are printed; --json lists them all

OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE", callback=writable("--out"), help="Answers, JSONL; those it holds already are kept."
    ),
]
EndpointOption = Annotated[
    list[str] | None,
    typer.Option("--endpoint", metavar="URL...", help="OpenAI-compatible servers that answer instead, up to /v1."),
]
EndpointModelOption = Annotated[
    str | None, typer.Option("--endpoint-model", help="The target's name there, if they serve several models.")
]
RequireIdsOption = Annotated[
    bool, typer.Option("--require-token-ids", help="Refuse answers of servers that give text alone.")
]


def regenerate(
    prompts: Annotated[list[Path], typer.Option("--prompts", metavar="FILE...", help="Prompts, JSONL.")],
    out: OutOption,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="FILE...", help="Drop prompts that overlap these evaluation prompts."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N prompts.")] = None,
    raw: RawOption = False,
    target: TargetOption = BUNDLED,
    temperature: Annotated[
        float | None, typer.Option("--temperature", show_default=_RECOMMENDED, help="0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", show_default=_RECOMMENDED, help="0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", show_default=_RECOMMENDED, help="1 is off.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")] = 512,
    max_prompt: Annotated[
        int, typer.Option("--max-prompt", min=1, help="Longer prompts, in tokens, are left out and counted.")
    ] = 1024,
    slots: Annotated[
        int, typer.Option("--slots", min=1, help="Requests under way at once, here or at each server.")
    ] = 32,
    endpoint: EndpointOption = None,
    endpoint_model: EndpointModelOption = None,
    require_token_ids: RequireIdsOption = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Answer prompts with the target itself, turn by turn.

    Killed and started again it goes on with what is missing. Exit code 1 where a server left requests unanswered;
    the next run asks them again. A server's key is read from OPENAI_API_KEY.
    """
    from dspark.cli.pair import load_quietly
    from dspark.data.regenerate import Asking
    from dspark.data.regenerate import regenerate as answer
    from dspark.foundation.artifacts import write_json

    chosen = _chosen(temperature, top_k, top_p)
    kept, dropped = _read(prompts, against)
    card: Card | Target
    if endpoint:
        card, answerer = _remote(target, endpoint, endpoint_model, slots, require_token_ids)
        longest = min(max_prompt, _room(card, max_tokens))
    else:
        card = model = load_quietly(target, dtype, device)
        longest = min(max_prompt, _room(card, max_tokens))
        answerer = _embedded(model, slots, longest + max_tokens)
    card.chat.raw = raw
    sampling = replace(card.recommended, **chosen)
    asking = Asking(card.name, card.chat, sampling, max_tokens, longest, seed)
    result = answer(answerer, kept[:limit], out, asking)
    print(_summary(result))
    if json is not None:
        write_json(json, asdict(result) | {"dropped": dropped, "target": card.name, "out": str(out)})
    if result.failures:
        raise typer.Exit(1)


def _embedded(model: Target, slots: int, positions: int) -> Answerer:
    from dspark.data.answering import EmbeddedAnswerer
    from dspark.decoding.engine import Limits

    return EmbeddedAnswerer(model, Limits(slots, cache_tokens=slots * positions))


def _remote(target: str, urls: list[str], model: str | None, slots: int, need_ids: bool) -> tuple[Card, Answerer]:
    from dspark.cli.quiet import quieten
    from dspark.data.endpoints import EndpointAnswerer
    from dspark.targets.card import load_card

    quieten()
    card = load_card(target)
    key = os.environ.get("OPENAI_API_KEY", "none")
    return card, EndpointAnswerer(urls, card.chat, card.stop_ids, slots=slots, model=model, key=key, need_ids=need_ids)


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


def _room(model: Card | Target, max_tokens: int) -> int:
    room = model.max_positions - max_tokens
    if room < 1:
        raise UserError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: the context of {model.name} holds"
            f" {model.max_positions}; use fewer"
        )
    return room


def _summary(result: Regenerated) -> str:
    lines = [
        f"{result.responses} answers, {result.tokens} tokens ({result.tok_s:.1f} tokens/s);"
        f" {result.already_done} were there before, {result.too_long} turns have too long a prompt"
    ]
    if result.mismatched:
        lines.append(f"{result.mismatched} answers came as text whose ids do not fit what the server counted")
    if result.failures:
        lines.append(f"{len(result.failures)} requests failed; run the same command again to retry them:")
        lines += [f"  {each['id']}, turn {each['turn']}: {each['reason']}" for each in result.failures[:_SHOWN]]
        lines += [f"  and {len(result.failures) - _SHOWN} more"] if len(result.failures) > _SHOWN else []
    return "\n".join(lines)
