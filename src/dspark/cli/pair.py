"""A target and the drafter that goes with it, from what people write after --target and --drafter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark.cli.options import BUNDLED
from dspark.cli.quiet import quieten
from dspark.foundation.errors import UserError, first_line

if TYPE_CHECKING:
    from dspark.decoding.single import Decoder
    from dspark.drafters.drafter import Drafter
    from dspark.speculation.confidence import Calibrations
    from dspark.targets.model import Target

CONFIG = "config.json"
BUNDLED_DRAFTERS = (BUNDLED,)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pair:
    """A decoder ready for use, and what its drafter was called (None: there is none)."""

    decoder: Decoder
    drafter: str | None
    whole_seconds: tuple[float, ...] = ()
    """What a round that drafts K tokens and verifies 0..K takes here, as measured on loading."""
    round_seconds: tuple[float, ...] = ()
    """The same for blocks as long as the decoder's own."""
    plain_seconds: float = 0.0
    """What a step without a draft takes."""

    @property
    def calibrations(self) -> Calibrations:
        """How the drafter's confidence is read."""
        return self.decoder.greedy.calibrations

    @property
    def target(self) -> Target:
        """The decoder's target."""
        return self.decoder.target

    def asdict(self, decoder: Decoder | None = None) -> dict[str, Any]:
        """What a --json says about the pair that was measured, with ``decoder`` in place of its own."""
        slots = (decoder or self.decoder).greedy.draft_slots
        seconds = self.whole_seconds if slots is None else self.round_seconds
        return {
            "target": self.target.name,
            "drafter": self.drafter,
            "dtype": str(self.target.precision).removeprefix("torch."),
            "weights": self.target.weights,
            "device": str(self.target.device),
            "round_ms": [1000 * each for each in seconds],
            "plain_ms": 1000 * self.plain_seconds,
            "draft_slots": slots,
        }


def load_pair(target: str = BUNDLED, drafter: str | None = BUNDLED, dtype: str = "auto", device: str = "auto") -> Pair:
    """Load both for inference; ``drafter`` None loads the target alone.

    Raises UserError where either is missing or damaged, or where they don't fit each other.
    """
    from dspark.decoding.single import Decoder

    if drafter is None:
        return Pair(Decoder(load_quietly(target, dtype, device)), None)
    (pair,) = load_pairs(target, [drafter], dtype, device)
    return pair


def load_pairs(target: str, drafters: Sequence[str], dtype: str = "auto", device: str = "auto") -> list[Pair]:
    """Load one target and several drafters beside it; raises UserError as ``load_pair`` does."""
    folders = [resolve_drafter(drafter) for drafter in drafters]
    loaded = load_quietly(target, dtype, device)
    models = [load_beside(loaded, folder) for folder in folders]
    return [_pair(loaded, *each) for each in zip(models, drafters, folders, strict=True)]


def load_drafting(target: str, drafter: str, dtype: str = "auto", device: str = "auto") -> tuple[Target, Drafter]:
    """Load both for inference, without measuring anything; raises UserError as ``load_pair`` does."""
    folder = resolve_drafter(drafter)
    loaded = load_quietly(target, dtype, device)
    return loaded, load_beside(loaded, folder)


def load_beside(loaded: Target, folder: Path) -> Drafter:
    """The drafter in ``folder`` beside a target that is there, in the weights that go with the target's."""
    import torch

    from dspark.drafters.checkpoint import load_drafter
    from dspark.targets.rounding import rows_beside

    model = load_drafter(folder, loaded.identity, loaded.ends, loaded.dtype, loaded.device)
    rounds = rows_beside(loaded.rounds)
    if rounds == torch.int16:
        model.round_to_bytes()
    model.pack(rounds)
    return model


def _pair(loaded: Target, model: Drafter, drafter: str, folder: Path) -> Pair:
    """Both with how rounds are planned here: measures what they cost."""
    from dspark.decoding.profile import measure, measure_blocks
    from dspark.decoding.single import Decoder
    from dspark.drafters.checkpoint import read_calibrations, read_survival
    from dspark.speculation.confidence import nearest
    from dspark.speculation.planner.single import WHOLE, EarlyStop, Planning, WhileItPays, without_a_clock
    from dspark.speculation.sampling import Sampling
    from dspark.targets.rounding import shares_readings

    whole = measure(loaded, model)
    calibrations = read_calibrations(folder, model.config.block_size)
    counted = nearest(Sampling(), calibrations.survival)
    survival = (calibrations.survival[counted] if counted else ()) or read_survival(folder)
    slots, prices = measure_blocks(loaded, model, whole, survival)
    pays = WhileItPays(prices.rounds, prices.plain)
    greedy, sampled = Planning(EarlyStop(prices.rounds), pays, slots, calibrations), WHOLE
    if loaded.device.type == "cpu":  # those prices are a CPU's
        survival = read_survival(folder, greedy=False)
        sampled = without_a_clock(model.config.block_size, survival, shares_readings(loaded.rounds), calibrations)
    decoder = Decoder(loaded, model, greedy, sampled)
    return Pair(decoder, drafter, whole.rounds, prices.rounds, prices.plain)


def load_quietly(target: str, dtype: str = "auto", device: str = "auto") -> Target:
    """Load a target for inference without the bars and advice of the library below."""
    from dspark.targets.model import load_target

    quieten()
    return load_target(target, dtype, device)


def resolve_drafter(drafter: str) -> Path:
    """The checkpoint folder of a bundled name, a folder or a hub id; UserError where there is none."""
    if drafter in BUNDLED_DRAFTERS:
        return _bundled(drafter)
    path = Path(drafter).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.exists():
        raise UserError(f"--drafter {drafter} is a file; expected the folder of a checkpoint, with {CONFIG}")
    if _HUB_ID.fullmatch(drafter) and not drafter.startswith("."):
        return _from_hub(drafter)
    raise UserError(
        f"no drafter at {drafter!r}: expected a checkpoint folder, a hub id (owner/name) or a bundled name"
        f" ({', '.join(BUNDLED_DRAFTERS)})"
    )


def fingerprint(drafter: str) -> dict[str, str]:
    """SHA-256 of the files that decide what a drafter proposes, by name."""
    from dspark.drafters.checkpoint import CALIBRATION, WEIGHTS
    from dspark.foundation.artifacts import sha256_file

    folder = resolve_drafter(drafter)
    return {name: sha256_file(folder / name) for name in (CONFIG, WEIGHTS, CALIBRATION) if (folder / name).is_file()}


def _bundled(name: str) -> Path:
    folder = Path(str(files("dspark"))) / "assets" / "drafters" / name
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"the bundled drafter {name!r} is not part of this installation; name one with --drafter"
            " (`dspark train` leaves one in its run folder, as drafter/)"
        )
    return folder


def _checked(path: Path) -> Path:
    if (path / CONFIG).is_file():
        return path
    inner = path / "drafter"
    hint = f"; did you mean {inner}?" if (inner / CONFIG).is_file() else ""
    raise UserError(f"--drafter {path} has no {CONFIG}, so it is no checkpoint of a drafter{hint}")


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds: offline, gated, missing
        raise UserError(
            f"no folder {repo!r} here, and the hub gave no drafter of that id ({first_line(error)});"
            " check the name and the network"
        ) from error
