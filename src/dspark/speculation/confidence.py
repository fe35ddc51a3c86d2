"""From the confidence head's logits to probabilities that mean what they say (section 4).

Every map turns what is known of slot k before x_k is drawn into a conditional probability, so planning by it stays
lossless: the logit of the confidence head, and how sure the drafter is of its own likeliest token (its "peak", which
the head never sees). Survival is always the running product.

Legend: K slots of a block, P knots; other leading axes are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from dspark.foundation.errors import UserError
from dspark.speculation.rows import Numbers, as_long, side_by_side
from dspark.speculation.sampling import Sampling

CLAMP = 15.0  # beyond, a logit says nothing more
_FARTHEST = 700.0  # of what has an exponential


class ConfidenceMap(Protocol):
    """One way to calibrate."""

    kind: ClassVar[str]

    @property
    def block(self) -> int:
        """K, the slots it knows."""
        ...

    def conditional(self, logits: Numbers, peaks: Numbers | None = None) -> Numbers:
        """``c [..., k]`` of the first ``k <= K`` slots of blocks, by their confidence logits and peaks ``[..., k]``.

        ValueError for a map of fewer slots, and for one that reads peaks where there are none.
        """
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

    def conditional(self, logits: Numbers, peaks: Numbers | None = None) -> Numbers:
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

    def conditional(self, logits: Numbers, peaks: Numbers | None = None) -> Numbers:
        """See ``ConfidenceMap``."""
        return sigmoid(clamped(logits) * _first(self.slopes, logits) + _first(self.offsets, logits))


@dataclass(frozen=True)
class Logistic:
    """``sigmoid(slope_k * logit + peak_slope_k * peak + offset_k)``."""

    kind: ClassVar[str] = "logistic"
    slopes: tuple[float, ...]
    peak_slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def block(self) -> int:
        """K."""
        return len(self.slopes)

    def conditional(self, logits: Numbers, peaks: Numbers | None = None) -> Numbers:
        """See ``ConfidenceMap``."""
        if peaks is None:
            raise ValueError("a logistic map reads peaks, and there are none")
        weights = (_first(each, logits) for each in (self.slopes, self.peak_slopes, self.offsets))
        slopes, peak_slopes, offsets = weights
        return sigmoid(clamped(logits) * slopes + clamped(peaks) * peak_slopes + offsets)

    def of_round(self, logits: Sequence[float], peaks: Sequence[float]) -> list[float]:
        """``conditional`` of one block, a number at a time."""
        _check(self.block, len(logits))
        weights = zip(self.slopes, self.peak_slopes, self.offsets, strict=True)
        slots = zip(weights, logits, peaks, strict=False)
        return [_chance(a * _held(logit) + b * _held(peak) + c) for (a, b, c), logit, peak in slots]


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

    def conditional(self, logits: Numbers, peaks: Numbers | None = None) -> Numbers:
        """See ``ConfidenceMap``."""
        found = clamped(logits)  # a copy
        for k in range(_check(self.block, logits.shape[-1])):
            found[..., k] = np.interp(found[..., k], self.knots[k], self.probabilities[k])
        return found


MAPS: dict[str, Any] = {each.kind: each for each in (Temperatures, Platt, Logistic, Isotonic)}


@dataclass(frozen=True)
class Calibrations:
    """Maps by the sampling that they were fitted for: what is accepted depends on it. ``survival [K]``: the share of
    blocks whose first 1..K drafts were accepted there, where somebody counted.
    """

    maps: Mapping[Sampling, ConfidenceMap] = field(default_factory=dict)
    survival: Mapping[Sampling, tuple[float, ...]] = field(default_factory=dict)

    def of(self, sampling: Sampling) -> ConfidenceMap | None:
        """The map of the nearest settings; None: confidence is taken as trained."""
        near = nearest(sampling, self.maps)
        return None if near is None else self.maps[near]

    def with_regime(self, sampling: Sampling, fitted: ConfidenceMap, survival: tuple[float, ...] = ()) -> Calibrations:
        """The same with one more sampling, or another map for one of them."""
        return Calibrations({**self.maps, sampling: fitted}, {**self.survival, sampling: survival})

    def asdict(self) -> dict[str, Any]:
        """What ``read`` takes."""
        regimes = [
            {"sampling": vars(sampling), "map": as_json(each), "survival": list(self.survival.get(sampling, ()))}
            for sampling, each in self.maps.items()
        ]
        return {"regimes": regimes}

    @classmethod
    def read(cls, stored: dict[str, Any], block: int, where: str) -> Calibrations:
        """As ``asdict`` wrote them, for blocks of ``block`` drafts; UserError, naming ``where``, for anything else."""
        regimes = stored.get("regimes")
        if not isinstance(regimes, list) or not all(_is_regime(each) for each in regimes):
            raise UserError(f"{where} holds no confidence maps (a list of regimes); calibrate again")
        maps = {Sampling(**each["sampling"]): from_json(each["map"], where) for each in regimes}
        survival = {Sampling(**each["sampling"]): tuple(each.get("survival", ())) for each in regimes}
        uneven = [each for sampling, each in survival.items() if each and len(each) != maps[sampling].block]
        if uneven:
            raise UserError(
                f"{where} counts survival of {len(uneven[0])} drafts beside maps of others; calibrate again"
            )
        short = [each.block for each in maps.values() if each.block < block]
        if short:
            raise UserError(
                f"{where} has maps of {short[0]} drafts, the drafter's blocks have {block}; calibrate again"
            )
        return cls(maps, survival)


def nearest(sampling: Sampling, known: Iterable[Sampling]) -> Sampling | None:
    """These settings themselves, or those with the nearest temperature; None where none are alike.

    A greedy draft is judged by its argmax alone, so what was found for greedy requests serves these only.
    """
    alike = [each for each in known if each.greedy == sampling.greedy]
    if sampling in alike or not alike:
        return sampling if alike else None
    return min(alike, key=lambda each: abs(each.temperature - sampling.temperature))


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
    known = kind is not None and set(values) == {each.name for each in fields(kind)} and _alike([*values.values()])
    nested = any(isinstance(each, tuple) for value in values.values() if known for each in value)
    if kind is None or not known or nested != (kind is Isotonic):
        raise UserError(
            f"{where} holds a confidence map of kind {stored.get('kind')!r} with {sorted(values)}; expected one of"
            f" {sorted(MAPS)} with as many numbers for each: calibrate again"
        )
    found: ConfidenceMap = kind(**values)
    if not _means_something(found):
        raise UserError(f"{where} holds a {found.kind} map whose numbers mean nothing; calibrate again")
    return found


def _means_something(calibration: ConfidenceMap) -> bool:
    """Whether temperatures are positive, and an isotonic map's knots and probabilities rise, the latter from 0 to 1."""
    if isinstance(calibration, Temperatures):
        return min(calibration.temperatures) > 0
    if isinstance(calibration, Isotonic):
        rising = (*calibration.knots, *((0.0, *slot, 1.0) for slot in calibration.probabilities))
        return all(list(each) == sorted(each) for each in rising)
    return True


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


def chances(
    through: ConfidenceMap | None, logits: Sequence[float], peaks: Sequence[float] | None = None
) -> list[float]:
    """``c [k]`` of one round's block, read ``through`` a map, or as the head was trained where that is None.

    A few numbers: by themselves they take a fraction of what arrays do, and every round waits for them.
    """
    if through is None:
        return [_chance(logit) for logit in logits]
    if isinstance(through, Logistic) and peaks is not None:
        return through.of_round(logits, peaks)
    found: list[float] = through.conditional(np.array(logits), None if peaks is None else np.array(peaks)).tolist()
    return found


def chances_of_many(
    through: ConfidenceMap | None, logits: Sequence[Sequence[float]], peaks: Sequence[Sequence[float]] | None = None
) -> list[list[float]]:
    """``chances`` of the blocks of many rounds at once, ``[N][k]``."""
    logits_NK, lengths = side_by_side(logits)
    if through is None:
        with np.errstate(over="ignore"):  # comes to 0, as it should
            return as_long(sigmoid(logits_NK), lengths)
    peaks_NK = None if peaks is None else side_by_side(peaks)[0]
    return as_long(through.conditional(logits_NK, peaks_NK), lengths)


def _chance(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -_FARTHEST else 0.0


def _held(logit: float) -> float:
    return min(max(logit, -CLAMP), CLAMP)


def _first(values: tuple[float, ...], logits: Numbers) -> Numbers:
    return np.array(values[: _check(len(values), logits.shape[-1])])


def _check(block: int, slots: int) -> int:
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
    names, shares = {each.name for each in fields(Sampling)}, stored.get("survival", [])
    if not isinstance(shares, list) or not all(isinstance(each, int | float) and 0 <= each <= 1 for each in shares):
        return False
    if shares != sorted(shares, reverse=True):
        return False
    return set(sampling) <= names and all(isinstance(each, int | float) for each in sampling.values())
