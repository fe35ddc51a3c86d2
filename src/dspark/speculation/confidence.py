"""From the confidence head's logits to probabilities that mean what they say (section 4).

Every map turns a conditional logit into a conditional probability, slot by slot; survival is always their running
product. What a map may read of slot k is known before x_k is drawn, so planning by it stays lossless.

Legend: K slots of a block, P knots; other leading axes are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dspark.foundation.errors import UserError
from dspark.speculation.sampling import Sampling

Numbers = NDArray[np.float64]
CLAMP = 15.0  # beyond, a logit says nothing more


class ConfidenceMap(Protocol):
    """One way to calibrate."""

    kind: ClassVar[str]

    @property
    def block(self) -> int:
        """K, the slots it knows."""
        ...

    def conditional(self, logits: Numbers) -> Numbers:
        """``c [..., k]`` of the logits of the first ``k <= K`` slots of blocks."""
        ...


@dataclass(frozen=True)
class Temperatures:
    """Sequential temperature scaling: ``sigmoid(logit / T_k)``."""

    kind: ClassVar[str] = "temperatures"
    temperatures: tuple[float, ...]

    @property
    def block(self) -> int:
        """K."""
        return len(self.temperatures)

    def conditional(self, logits: Numbers) -> Numbers:
        """See ``ConfidenceMap``."""
        return sigmoid(clamped(logits) / _first(self.temperatures, logits))


@dataclass(frozen=True)
class Platt:
    """``sigmoid(slope_k * logit + offset_k)``."""

    kind: ClassVar[str] = "platt"
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def block(self) -> int:
        """K."""
        return len(self.slopes)

    def conditional(self, logits: Numbers) -> Numbers:
        """See ``ConfidenceMap``."""
        return sigmoid(clamped(logits) * _first(self.slopes, logits) + _first(self.offsets, logits))


@dataclass(frozen=True)
class Isotonic:
    """A rising line through ``probabilities[k]`` at the logits ``knots[k]``, flat beyond its ends."""

    kind: ClassVar[str] = "isotonic"
    knots: tuple[tuple[float, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]

    @property
    def block(self) -> int:
        """K."""
        return len(self.knots)

    def conditional(self, logits: Numbers) -> Numbers:
        """See ``ConfidenceMap``."""
        found = clamped(logits)  # a copy
        for k in range(_checked(self.block, logits)):
            found[..., k] = np.interp(found[..., k], self.knots[k], self.probabilities[k])
        return found


MAPS: dict[str, Any] = {each.kind: each for each in (Temperatures, Platt, Isotonic)}


@dataclass(frozen=True)
class Calibrations:
    """Maps by the sampling that they were fitted for: what is accepted depends on it."""

    maps: Mapping[Sampling, ConfidenceMap] = field(default_factory=dict)

    def of(self, sampling: Sampling) -> ConfidenceMap | None:
        """The map of these settings, or of those with the nearest temperature; None: confidence is taken as trained.

        A greedy draft is judged by its argmax alone, so greedy maps serve greedy requests only, and others only others.
        """
        alike = [each for each in self.maps if each.greedy == sampling.greedy]
        if sampling in self.maps or not alike:
            return self.maps.get(sampling)
        return self.maps[min(alike, key=lambda each: abs(each.temperature - sampling.temperature))]

    def asdict(self) -> dict[str, Any]:
        """What ``read`` takes."""
        return {"regimes": [{"sampling": vars(sampling), "map": as_json(each)} for sampling, each in self.maps.items()]}

    @classmethod
    def read(cls, stored: dict[str, Any], block: int, where: str) -> Calibrations:
        """As ``asdict`` wrote them, for blocks of ``block`` drafts; UserError, naming ``where``, for anything else."""
        regimes = stored.get("regimes")
        if not isinstance(regimes, list) or not all(_is_regime(each) for each in regimes):
            raise UserError(f"{where} holds no confidence maps (a list of regimes); calibrate again")
        maps = {Sampling(**each["sampling"]): from_json(each["map"], where) for each in regimes}
        short = [each.block for each in maps.values() if each.block < block]
        if short:
            raise UserError(
                f"{where} has maps of {short[0]} drafts, the drafter's blocks have {block}; calibrate again"
            )
        return cls(maps)


def untouched(block: int) -> Temperatures:
    """The head as it was trained."""
    return Temperatures((1.0,) * block)


def as_json(calibration: ConfidenceMap) -> dict[str, Any]:
    """What ``from_json`` reads."""
    return {"kind": calibration.kind, **asdict(calibration)}  # type: ignore[call-overload]  # all maps are dataclasses


def from_json(stored: dict[str, Any], where: str) -> ConfidenceMap:
    """A map as it was stored; UserError, naming ``where``, for what is none."""
    kind = MAPS.get(str(stored.get("kind")))
    values = {name: _tupled(value) for name, value in stored.items() if name != "kind"}
    if kind is None or set(values) != {each.name for each in fields(kind)} or not _alike([*values.values()]):
        raise UserError(
            f"{where} holds a confidence map of kind {stored.get('kind')!r} with {sorted(values)}; expected one of"
            f" {sorted(MAPS)} with as many numbers for each: calibrate again"
        )
    found: ConfidenceMap = kind(**values)
    return found


def _alike(values: list[Any]) -> bool:
    """Whether all are lists of equal length, none empty, of numbers or of what is alike in turn."""
    if not all(isinstance(each, tuple) and each for each in values) or len({*map(len, values)}) != 1:
        return False
    slots = [[*each] for each in zip(*values, strict=True)]
    return all(all(isinstance(each, int | float) and np.isfinite(each) for each in s) or _alike(s) for s in slots)


def sigmoid(x: Numbers) -> Numbers:
    """``1 / (1 + exp(-x))``."""
    result: Numbers = 1 / (1 + np.exp(-x))
    return result


def clamped(logits: Numbers) -> Numbers:
    """Logits as maps read them."""
    return np.clip(logits, -CLAMP, CLAMP)


def _first(values: tuple[float, ...], logits: Numbers) -> Numbers:
    return np.array(values[: _checked(len(values), logits)])


def _checked(block: int, logits: Numbers) -> int:
    slots: int = logits.shape[-1]
    if slots > block:
        raise ValueError(f"a map of {block} slots was given the logits of {slots}")
    return slots


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _is_regime(stored: Any) -> bool:
    """Whether it has what a regime has; its map is looked at by ``from_json``."""
    parts = [stored.get(name) for name in ("map", "sampling")] if isinstance(stored, dict) else [None]
    if not all(isinstance(each, dict) for each in parts):
        return False
    sampling = stored["sampling"]
    names = {each.name for each in fields(Sampling)}
    return set(sampling) <= names and all(isinstance(each, int | float) for each in sampling.values())
