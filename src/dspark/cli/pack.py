"""`dspark data pack`: answers in one small file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.cli.options import JsonOption, writable
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.data.responses import Response


def pack(
    responses: Annotated[list[Path], typer.Option("--responses", metavar="FILE...", help="Answers, JSONL or packed.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.xz", callback=writable("--out"), help="Where the small file goes.")
    ],
    json: JsonOption = None,
) -> None:
    """Put answers into one small file that training reads as it is.

    Token ids alone are kept. An answer that several files hold is taken from the first of them.
    """
    from dspark.data.archive import SUFFIX, read_answers, write_archive
    from dspark.foundation.artifacts import write_json

    if out.suffix != SUFFIX:
        raise UserError(f"--out is {out}; expected a name that ends in {SUFFIX}, by which such files are known")
    found: dict[tuple[object, ...], Response] = {}
    for path in responses:
        for response in read_answers(path):
            key = (response.id, response.turn, *response.prompt_ids, None, *response.output_ids)
            found.setdefault(key, response)
    write_archive(out, list(found.values()))
    tokens = sum(len(each.output_ids) for each in found.values())
    size = out.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    print(f"{len(found)} answers, {tokens} tokens, {shown}: {out}")
    if json is not None:
        write_json(json, {"responses": len(found), "tokens": tokens, "bytes": size})
