"""Options that several verbs share, so that they are spelt, checked and explained once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dspark.foundation.errors import UserError

BUNDLED = "smollm2-135m"
DIFFERENT = 1  # exit code where drafting changed a greedy or coupled text by more than rounding explains


def writable(option: str) -> Callable[[Path | None], Path | None]:
    """A check that refuses a place for a file that can't be written, before hours of work and not after."""

    def check(path: Path | None) -> Path | None:
        if path is None:
            return None
        parent = path.resolve().parent
        while not parent.exists():
            parent = parent.parent
        special = path.exists() and not path.is_file()  # a folder, or a device that a rename would destroy
        if special or not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"{option} {path} can't be written there; give the path of a file in a writable folder")
        return path

    return check


TargetOption = Annotated[
    str, typer.Option("--target", help="Target: a folder, a hub id, a .gguf file or a bundled name.")
]
DrafterOption = Annotated[str, typer.Option("--drafter", help="Drafter: a folder, a hub id or a bundled name.")]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (float32 on a CPU, bfloat16 on a GPU that multiplies it), bfloat16, float32; on a CPU also float16"
        " or int8. A CPU rounds weights to it and sums in float32; one that multiplies bfloat16 (AVX512_BF16, AMX)"
        " rounds what such weights are multiplied with as well, which makes many rows cheaper. Or int16: weights as"
        " their blocks of 4 or 8 bits have them (else rounded to 8), what they are multiplied with rounded to 16: the"
        " fastest for a few users.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Fixes every random draw.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopKOption = Annotated[int, typer.Option("--top-k", min=0, help="Keep the k likeliest tokens; 0 is off.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens of this mass; 1 is off.")]
CoupledOption = Annotated[
    bool,
    typer.Option(
        "--coupled",
        help="Draw so that the seed alone decides the text, drafted or not and whatever is verified, for somewhat fewer"
        " accepted drafts; at temperature 0 that is so anyway.",
    ),
]
LookupOption = Annotated[
    bool,
    typer.Option(
        "--lookup/--no-lookup",
        help="Copy what followed the last words where they stood before, and draft elsewhere; or draft everywhere.",
    ),
]
RawOption = Annotated[
    bool,
    typer.Option("--raw", help="Prompts are texts to go on with, no chat template: for base models, which have none."),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable("--json"), help="Write the figures to FILE."),
]
