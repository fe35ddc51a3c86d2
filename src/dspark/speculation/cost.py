"""What a complete round takes on this machine: a monotone model of seconds, fitted to measured steps (SPS, section 5).

A step's time is a sum of parts that only grow:

    rising(tokens) + a * requests + b * context + c * positions read + d * laws
        + (drafting: rising(drafts) + e * positions read + f * laws)

The first is the staircase of the matrix products, as it was measured; with captured sizes a step counts as the next
larger one. A request's context is fetched once a step, and read by each of its tokens. A token that is drawn and not
just the likeliest one needs its whole law, as wide as the vocabulary. The model is linear in weights
that are none below zero, so a fit never says that more work takes less time, and a step that took longer than foretold
raises those parts that made up its time.

Legend: F features of a load (the parts), M measured steps, N drafts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspark.foundation.artifacts import write_json
from dspark.foundation.errors import UserError

Numbers = NDArray[np.float64]

# How fast real steps move the model, and the largest surprise (a share of the foretold time) that counts.
_LEARNING, _SURPRISE = 0.05, 0.5
_KEYS = ("tokens", "drafts", "weights", "padded")
_BEYOND = 1e9  # no step is larger
_FEW = 32  # drafts up to which numbers by themselves take less time than arrays
_BASE = 4  # prices of a request, its context, positions read and laws
_PRICES = _BASE + 2  # and of positions read and laws by drafts


class Load(NamedTuple):
    """What a step works on: ``tokens`` of the target's pass (anchors, drafts that are verified, pieces of prompts) of
    ``requests``, whose cached positions are the ``context``, and the positions that these tokens' attention ``reads``;
    ``drafting``: tokens that the drafter drafts first, all of its blocks, and what its attention ``reads_drafting``.
    ``laws``: rows of logits that a token is drawn from (of requests that sample), ``laws_drafting``: drafts that are.
    """

    tokens: int
    requests: int
    context: int = 0
    reads: int = 0
    drafting: int = 0
    reads_drafting: int = 0
    laws: int = 0
    laws_drafting: int = 0


# In the order of their prices: what has a curve comes before what is priced by the number.
_of_step = attrgetter("tokens", "requests", "context", "reads", "laws")
_of_drafts = attrgetter("drafting", "reads_drafting", "laws_drafting")


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step.

    ``tokens`` and ``drafts``: knots of the two rising curves, from 1 on; ``weights [F]``: what a step and a draft
    take at the least knot, what each further knot adds, and the prices of a request, positions and laws; ``padded``:
    sizes that steps are rounded up to (captured graphs), none where they take what they take.

    UserError for knots or weights that are none.
    """

    tokens: tuple[int, ...]
    drafts: tuple[int, ...]
    weights: tuple[float, ...]
    padded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, knots in (("tokens", self.tokens), ("drafts", self.drafts)):
            if not knots or knots[0] != 1 or list(knots) != sorted(set(knots)):
                raise UserError(f"a cost model's {name} are {list(knots)}; expected rising whole numbers from 1 on")
        count = len(self.tokens) + len(self.drafts) + _PRICES
        if len(self.weights) != count or not all(0 <= weight < float("inf") for weight in self.weights):
            raise UserError(
                f"a cost model has {len(self.weights)} weights; expected {count}, all finite and none below zero: it is"
                " damaged, or of another version; profile again"
            )

    @classmethod
    def fit(
        cls,
        measured: Sequence[tuple[Load, float]],
        tokens: Sequence[int],
        drafts: Sequence[int],
        padded: Sequence[int] = (),
    ) -> CostModel:
        """Least squares of relative errors over ``measured`` loads and their seconds; UserError for seconds that are
        none.
        """
        wrong = [seconds for _, seconds in measured if not 0 < seconds < float("inf")]
        if wrong or not measured:
            raise UserError(f"a cost model needs measured steps with positive seconds; found {wrong or 'no steps'}")
        empty = cls(tuple(tokens), tuple(drafts), (0.0,) * (len(tokens) + len(drafts) + _PRICES), tuple(padded))
        loads, seconds = zip(*measured, strict=True)
        features_MF = empty._features(loads) / np.array(seconds)[:, None]
        return replace(empty, weights=tuple(not_negative(features_MF, np.ones(len(measured))).tolist()))

    def seconds(self, load: Load) -> float:
        """Of one step."""
        tokens = load.tokens
        if self.padded:
            tokens = next((size for size in self.padded if size >= tokens), tokens)
        return self._rest(load) + _height(self._step_curve, tokens)

    def rounds(self, load: Load, drafts: int) -> Numbers:
        """Seconds ``[N+1]`` of steps that verify 0, 1, ... ``drafts`` drafts on top of ``load``, each of which reads as
        much, and is drawn as often, as the load's tokens are on average.
        """
        _, _, read, law = self._prices
        each = (read * load.reads + law * load.laws) / max(1, load.tokens)
        if drafts <= _FEW and not self.padded:
            rest, curve = self._rest(load), self._step_curve
            return np.array([_height(curve, load.tokens + n) + (rest + each * n) for n in range(drafts + 1)])
        more = np.arange(drafts + 1)
        rising_N = np.interp(self._padded(load.tokens + more), *self._step_points)
        total: Numbers = rising_N + (self._rest(load) + each * more)
        return total

    def _rest(self, load: Load) -> float:
        """Seconds of all but the first part."""
        request, context, read, law = self._prices
        reading, drawing = self.weights[-2:]
        draft = _height(self._draft_curve, load.drafting)
        draft += reading * load.reads_drafting + drawing * load.laws_drafting
        return request * load.requests + context * load.context + read * load.reads + law * load.laws + draft

    @cached_property
    def _prices(self) -> tuple[float, ...]:
        return self.weights[len(self.tokens) :][:_BASE]

    @cached_property
    def _step_curve(self) -> tuple[list[float], list[float]]:
        return _curve(self.tokens, self.weights[: len(self.tokens)])

    @cached_property
    def _step_points(self) -> tuple[Numbers, Numbers]:
        knots, heights = map(np.array, self._step_curve)
        return knots, heights

    @cached_property
    def _draft_curve(self) -> tuple[list[float], list[float]]:
        return _curve(self.drafts, self.weights[len(self.tokens) + _BASE : -2])

    def refined(self, taken: Sequence[tuple[Load, float]]) -> CostModel:
        """After some steps, their loads and the seconds they took.

        All parts together follow the middle of these steps: a machine that is slower now is slower in everything, and
        what decides is how the parts compare. By what each step took besides, its own parts move, the largest one most.
        """
        loads, seconds = zip(*taken, strict=True)
        weights = np.array(self.weights)
        parts_MF = self._features(loads) * weights
        foretold_M = np.add.reduce(parts_MF, axis=1)
        if not foretold_M.min() > 0:
            return self
        over_M = np.array(seconds) / foretold_M
        level = median(over_M.tolist())
        surprise_M = np.minimum(np.maximum(over_M / level - 1, -_SURPRISE), _SURPRISE)
        moved_F = _LEARNING * (surprise_M / parts_MF.max(axis=1)) @ parts_MF
        all_F = (1 - (1 - _LEARNING) ** len(taken)) * min(max(log(level), -_SURPRISE), _SURPRISE)
        return replace(self, weights=tuple((weights * np.exp(moved_F + all_F)).tolist()))

    def asdict(self) -> dict[str, list[float]]:
        """What ``of`` reads."""
        return {name: list(getattr(self, name)) for name in _KEYS}

    def save(self, path: Path) -> None:
        """As JSON."""
        write_json(path, self.asdict())

    @classmethod
    def of(cls, stored: dict[str, Any], where: str) -> CostModel:
        """What ``save`` wrote; UserError, naming ``where``, for anything else."""
        numbers = (each for name in _KEYS if isinstance(stored.get(name), list) for each in stored[name])
        lists = all(isinstance(stored.get(name), list) for name in _KEYS)
        if set(stored) != set(_KEYS) or not lists or not all(isinstance(each, int | float) for each in numbers):
            raise UserError(
                f"{where} holds {sorted(stored)}; expected a cost model ({', '.join(_KEYS)}); profile again"
            )
        return cls(**{name: tuple(stored[name]) for name in _KEYS})

    def _padded(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.padded:
            return tokens
        sizes = np.array(self.padded)
        at = np.searchsorted(sizes, tokens)
        return np.where(at < len(sizes), sizes[np.minimum(at, len(sizes) - 1)], tokens)

    def _features(self, loads: Sequence[Load]) -> Numbers:
        """``[M, F]``: the parts of loads whose prices are the weights."""
        step, draft = (np.array([parts(load) for load in loads]) for parts in (_of_step, _of_drafts))
        rising = _rising(self._padded(step[:, 0]), self.tokens), _rising(draft[:, 0], self.drafts)
        return np.concatenate((rising[0], step[:, 1:], rising[1], draft[:, 1:]), axis=1)


def _rising(values: NDArray[np.int64], knots: tuple[int, ...]) -> Numbers:
    """``[N, knots]``: how much of the first knot's price and of each further step to the next one a value pays.

    Behind the last knot the last step goes on; a value of 0 pays nothing.
    """
    ends = np.array(knots, dtype=np.float64)
    there = (values[:, None] > 0).astype(np.float64)
    if len(knots) == 1:
        return there
    paid = np.maximum((values[:, None] - ends[:-1]) / (ends[1:] - ends[:-1]), 0)
    np.minimum(paid[:, :-1], 1, out=paid[:, :-1])
    return np.concatenate((there, paid), axis=1)


def _curve(knots: tuple[int, ...], weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Where the rising curve of ``_rising`` bends and its heights there, for interpolation."""
    step = knots[-1] - knots[-2] if len(knots) > 1 else 1
    beyond = weights[-1] * _BEYOND / step if len(knots) > 1 else 0.0
    return [0.0, *map(float, knots), knots[-1] + _BEYOND], np.cumsum((0.0, *weights, beyond)).tolist()


def _height(curve: tuple[list[float], list[float]], at: int) -> float:
    """What ``np.interp`` gives, to the bit, in a few operations on numbers: for one of them it takes longer to call."""
    knots, heights = curve
    i = bisect_right(knots, at) - 1
    return (heights[i + 1] - heights[i]) / (knots[i + 1] - knots[i]) * (at - knots[i]) + heights[i]


def not_negative(a_MF: Numbers, b_M: Numbers) -> Numbers:
    """The x, none below zero, with the least ``|a x - b|`` (the active sets of Lawson and Hanson)."""
    count = a_MF.shape[1]
    scale = np.maximum(np.sqrt((a_MF**2).sum(axis=0)), 1e-300)
    a_MF = a_MF / scale
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    for _ in range(10 * count):
        downhill = np.where(free, -np.inf, a_MF.T @ (b_M - a_MF @ x))
        if downhill.max() <= 1e-10 * np.abs(b_M).sum():
            break
        free[int(downhill.argmax())] = True
        while True:
            best = np.zeros(count)
            best[free] = np.linalg.lstsq(a_MF[:, free], b_M, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                break
            share = (x[below] / np.maximum(x[below] - best[below], 1e-300)).min()
            x = x + share * (best - x)
            free &= x > 1e-15
        x = best
    result: Numbers = x / scale
    return result
