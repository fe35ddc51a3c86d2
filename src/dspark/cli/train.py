"""`dspark train`: a drafter from a recipe."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.cli.options import JsonOption
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.training.recipe import Recipe
    from dspark.training.trainer import TrainResult


def train(
    recipe: Annotated[str, typer.Option("--recipe", help="A YAML file, or the name of a shipped recipe.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.KEY=VALUE...", help="Change a value of the recipe."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Folder of the run [default: in the user's cache]."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="trainer.seed of the recipe.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="dtype of the recipe: the target's.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="device of the recipe.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe, check its files, and stop.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Train a drafter from a recipe.

    A killed run goes on with --resume as if nothing had happened.
    """
    path = find_recipe(recipe)

    from dspark.foundation.artifacts import write_json
    from dspark.foundation.cache import cache_dir
    from dspark.foundation.settings import load_settings
    from dspark.training.recipe import Recipe

    given = {"trainer.seed": seed, "dtype": dtype, "device": device}
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    resolved = load_settings(Recipe, path, [*(set_ or ()), *named])
    folder = run if run is not None else cache_dir() / "runs" / path.stem
    if dry_run:
        print(resolved.to_yaml(), end="")
    _check_responses(resolved)
    if dry_run:
        if json is not None:
            values = {"dry_run": True, "recipe": resolved.model_dump(mode="json"), "run": str(folder)}
            write_json(json, values)
        return

    from dspark.cli.quiet import quieten
    from dspark.training import trainer

    quieten()
    result = trainer.train(resolved, folder, resume)
    print(_summary(result, folder))
    if json is not None:
        write_json(json, result.asdict() | {"run": str(folder), "recipe": resolved.model_dump(mode="json")})


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one; the UserError lists those there are."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    shipped = {each.stem: each for each in sorted(Path(str(files("dspark.recipes"))).glob("*.yaml"))}
    if recipe in shipped:
        return shipped[recipe]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no recipe {recipe!r}: {hint}give a YAML file or one of: {', '.join(shipped)}")


def _check_responses(recipe: Recipe) -> None:
    for path in recipe.data.responses:
        if not path.is_file():
            raise UserError(
                f"data.responses: there is no file {path}; make it with"
                f" `dspark data regenerate --prompts FILE --out {path}`, or name yours with"
                " --set data.responses=[FILE]"
            )
        if not path.stat().st_size:
            raise UserError(f"data.responses: {path} is empty; go on with `dspark data regenerate --out {path}`")


def _summary(result: TrainResult, folder: Path) -> str:
    v = result.validation
    acceptance = " ".join(f"{value:.2f}" for value in v.conditional_acceptance)
    return (
        f"step {result.steps}: {result.tokens} tokens in {result.seconds:.0f} s"
        f" ({result.tokens_per_second:.0f} tokens/s), peak memory {result.peak_memory_bytes / 1e9:.1f} GB\n"
        f"held-out tau {v.tau:.2f} at temperature 1, {v.greedy_tau:.2f} greedy; acceptance {acceptance}\n"
        f"drafter: {folder / 'drafter'}"
    )
