"""`dspark generate`: one completion, streamed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspark.cli.options import (
    BUNDLED,
    CoupledOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    LookupOption,
    MaxTokensOption,
    RawOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.speculation.loop import Round
    from dspark.targets.chat import Chat


def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer.", show_default=False)],
    plain: Annotated[bool, typer.Option("--plain", help="Without drafting.")] = False,
    raw: RawOption = False,
    lookup: LookupOption = True,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    coupled: CoupledOption = False,
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Answer one prompt, streamed.

    The text goes to stdout as it comes, its figures to stderr.
    """
    if not prompt:
        raise UserError("the prompt is empty; give some text")
    if raw and system is not None:
        raise UserError("--system needs the chat template, which --raw switches off; drop one of them")

    from dspark.cli.pair import load_pair
    from dspark.decoding.request import Request
    from dspark.foundation.artifacts import write_json
    from dspark.speculation.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p)
    pair = load_pair(target, None if plain else drafter, dtype, device)
    chat = pair.target.chat
    chat.raw = raw
    prompt_ids = chat.prompt_ids(_messages(prompt, system))
    mode: Any = "plain" if plain else "dspark"
    started = time.perf_counter()
    decoder = replace(pair.decoder, lookup=lookup)
    request = Request("prompt", prompt_ids, sampling, seed, max_tokens, coupled=coupled)
    rounds = _stream(decoder.stream(request, mode), chat)
    figures = _figures(rounds, time.perf_counter() - started)
    print(_line(figures), file=sys.stderr)
    if json is not None:
        ids = [token for each in rounds for token in each.tokens]
        answer = {"text": chat.decode(ids), "token_ids": ids, "finish_reason": rounds[-1].finish}
        settings = {"mode": mode, "lookup": lookup, "sampling": vars(sampling), "seed": seed, "coupled": coupled}
        write_json(json, answer | figures | settings | {"prompt_tokens": len(prompt_ids)} | pair.asdict())


def _stream(coming: Iterator[Round], chat: Chat) -> list[Round]:
    """Print the text of rounds as they arrive."""
    from dspark.report.panels import printable
    from dspark.serving.tokens import TextStream

    # A terminal would obey control characters; a program that reads the text gets it as it is.
    shown: Callable[[str], str] = printable if sys.stdout.isatty() else str
    text = TextStream(chat.decode)
    rounds = []
    for each in coming:
        rounds.append(each)
        print(shown(text.push(each.tokens)), end="", flush=True)
    print(shown(text.finish()), flush=True)
    return rounds


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _figures(rounds: list[Round], seconds: float) -> dict[str, Any]:
    from dspark.speculation.acceptance import RoundTally

    tally = RoundTally()
    tally.extend(rounds)
    tokens = sum(len(each.tokens) for each in rounds)
    return {
        "tokens": tokens,
        "rounds": tally.rounds,
        "tau": tally.tau,
        "drafted": tally.drafted,
        "accepted": tally.accepted,
        "seconds": seconds,
        "tok_s": tokens / seconds,
    }


def _line(f: dict[str, Any]) -> str:
    text = f"{f['tokens']} tokens in {f['seconds']:.2f} s ({f['tok_s']:.1f} tokens/s), {f['rounds']} rounds"
    if f["drafted"]:
        text += f", tau {f['tau']:.2f}, {f['accepted']} of {f['drafted']} drafted tokens accepted"
    return text
