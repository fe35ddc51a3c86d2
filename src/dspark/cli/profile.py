"""`dspark profile`: what steps cost on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspark.cli.options import BUNDLED, DeviceOption, DrafterOption, DtypeOption, JsonOption, TargetOption, writable
from dspark.foundation.errors import UserError

if TYPE_CHECKING:
    from dspark.speculation.cost import CostModel, Load

_CHECKS = 24  # loads between those of the grid that judge the fit
_SHOWN_CONTEXT = 256
_SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def profile(
    requests: Annotated[int, typer.Option("--requests", min=1, help="Most requests at once.")] = 64,
    context: Annotated[int, typer.Option("--context", min=1, help="Longest context.")] = 1024,
    memory: Annotated[
        float, typer.Option("--memory-gb", help="Memory for caches; fewer long contexts with less.")
    ] = 4.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", callback=writable("--out"), help="Write the cost model to FILE."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.svg", callback=writable("--plot"), help="Draw measured steps and the fit."
        ),
    ] = None,
    target: TargetOption = BUNDLED,
    drafter: DrafterOption = BUNDLED,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Measure what steps and drafts cost on this machine, and fit the cost model that plans are made by.

    Steps of the core itself are timed, from one request to many, on contexts of random ids. Nothing else should run.
    """
    from dspark.cli.machine import load_now, machine_facts
    from dspark.cli.pair import load_drafting
    from dspark.decoding.costs import Contexts, check_settings, fit_costs, settings_of, time_steps
    from dspark.foundation.artifacts import write_json

    load = load_now()
    loaded, model = load_drafting(target, drafter, dtype, device)
    block, position = model.config.block_size, loaded.new_cache(1, 1).bytes
    contexts = Contexts.of(context, loaded.max_positions, requests, int(memory * 1e9 / position))
    if contexts is None:
        raise UserError(
            f"--memory-gb {memory:g} has no room for the caches of {requests} requests; give it more, or profile for"
            " fewer --requests"
        )
    settings = settings_of(block, requests, contexts)
    checks = check_settings(block, requests, contexts, _CHECKS)
    steps = time_steps(loaded, model, [*settings, *checks], contexts)
    measured, checked = steps[: len(settings)], steps[len(settings) :]
    costs = fit_costs(measured, loaded.sizes)
    figures = _figures(costs, measured, block) | {"median_error": _error(costs, checked)}
    figures["timed"] = _timed(costs, measured, fitted=True) + _timed(costs, checked, fitted=False)
    figures |= {"target": loaded.name, "drafter": drafter, "machine": machine_facts(loaded.device, load)}
    _print(figures)
    if out is not None:
        costs.save(out)
        print(f"cost model: {out}")
    if plot is not None:
        _draw(plot, costs, [*measured, *checked])
    if json is not None:
        write_json(json, figures)


def _figures(costs: CostModel, measured: Sequence[tuple[Load, float]], block: int) -> dict[str, object]:
    """What the model says of a few sizes, and the model itself."""
    tokens = [each for each in _SHOWN_TOKENS if each <= max(load.tokens for load, _ in measured)]
    requests = sorted({load.requests for load, _ in measured if load.drafting})
    return {
        "batch_tokens": tokens,
        "step_ms": [1000 * _step(costs, each) for each in tokens],
        "requests": requests,
        "draft_ms": [1000 * _draft(costs, each, block) for each in requests],
        "steps": len(measured),
        "model": costs.asdict(),
    }


def _timed(costs: CostModel, steps: Sequence[tuple[Load, float]], fitted: bool) -> list[dict[str, object]]:
    """Steps with what they took and what the model says of them; ``fitted``: whether it was fitted to them."""
    return [
        {
            "tokens": load.tokens,
            "requests": load.requests,
            "context": load.context,
            "drafting": load.drafting,
            "measured_ms": 1000 * seconds,
            "foretold_ms": 1000 * costs.seconds(load),
            "fitted": fitted,
        }
        for load, seconds in steps
    ]


def _draw(path: Path, costs: CostModel, steps: Sequence[tuple[Load, float]]) -> None:
    from dspark.report.plots import cost_plot

    told = [(load, seconds, costs.seconds(load)) for load, seconds in steps]
    plain = [(load.tokens, seconds, foretold) for load, seconds, foretold in told if not load.drafting]
    cost_plot(path, plain, [(seconds, foretold) for _, seconds, foretold in told])


def _error(costs: CostModel, measured: Sequence[tuple[Load, float]]) -> float:
    """Median relative error of what the model says of steps that it was not fitted to."""
    return statistics.median(abs(costs.seconds(load) / seconds - 1) for load, seconds in measured)


def _step(costs: CostModel, tokens: int) -> float:
    """Seconds of a step of ``tokens`` tokens of one request each."""
    from dspark.speculation.cost import Load

    return costs.seconds(Load(tokens, tokens, tokens * _SHOWN_CONTEXT, tokens * _SHOWN_CONTEXT))


def _draft(costs: CostModel, requests: int, block: int) -> float:
    """What whole blocks of ``requests`` add."""
    from dspark.speculation.cost import Load

    drafts = requests * block
    return costs.seconds(Load(0, 0, drafting=drafts, reads_drafting=drafts * _SHOWN_CONTEXT))


def _print(figures: dict[str, object]) -> None:
    for name, label, key, unit in (
        ("step_ms", "a step of tokens", "batch_tokens", "ms"),
        ("draft_ms", "drafts for requests", "requests", "ms"),
    ):
        counts, values = figures[key], figures[name]
        assert isinstance(counts, list) and isinstance(values, list)
        print(f"{label:20}" + "".join(f"{count:8}" for count in counts))
        print(f"{unit:20}" + "".join(f"{value:8.1f}" for value in values))
    print(f"context {_SHOWN_CONTEXT}; {figures['steps']} steps measured, median error on other loads", end=" ")
    print(f"{figures['median_error']:.1%}")
