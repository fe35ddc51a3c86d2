"""A target's steps of few tokens on a GPU: its modules recorded once for a size of step, and replayed.

What a step reads lies in tensors that stay where they are, and all its shapes are those of the next larger size. A step
of fewer tokens repeats its last one, which writes the same keys to the same row and changes nothing; every token has as
many blocks, of which it sees what is its own.

Not run on a GPU yet. Tests run the same steps of fixed sizes without recording them.

Legend: T tokens, M blocks of a token, d hidden size, F = taps * d.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dspark.foundation.errors import first_line
from dspark.nn.blocks import FixedPlan
from dspark.nn.cache import KVCache
from dspark.targets.ragged import RaggedBatch, Step

SIZES = (1, 2, 4, 8, 16, 32, 64)  # tokens
_POSITIONS = 2**17  # of all tokens that a step gathers keys and values of
# Largest difference from what the modules leave, as a share of its largest entry.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_WARM = 3  # runs before a recording, which must find libraries awake

Left = tuple[Tensor, Tensor | None]  # last hidden states ``[T, d]`` and features ``[T, F]``
# (token ids ``[T]``, where they belong, taps) -> what the modules leave.
Run = Callable[[Tensor, Step, Sequence[int]], Left]


class CapturedSteps:
    """The steps of ``run`` by size. Threads take turns."""

    def __init__(self, run: Run, record: bool) -> None:
        """``record`` False: run the modules every time."""
        self._run, self._record = run, record
        self._known: WeakKeyDictionary[KVCache, dict[tuple[int, ...], _Recorded]] = WeakKeyDictionary()
        self._lock = Lock()

    def run(self, ids_T: Tensor, batch: RaggedBatch, taps: tuple[int, ...]) -> Left | None:
        """As the modules would; None for a step that is too large."""
        blocks = 1 << (max(-(-(table.length + n) // batch.cache.size) for table, n in batch.parts) - 1).bit_length()
        if len(ids_T) > SIZES[-1]:
            return None
        tokens = SIZES[bisect_left(SIZES, len(ids_T))]
        if tokens * blocks * batch.cache.size > _POSITIONS:
            return None
        with self._lock:
            known = self._known.setdefault(batch.cache, {})
            if (step := known.get((tokens, blocks, *taps))) is None:
                step = _Recorded(batch.cache.keys[0].device, tokens, blocks)
                known[tokens, blocks, *taps] = step
            step.lay_out(ids_T, batch)
            hidden_Td, features_TF = step(lambda: self._run(step.ids_T, step.batch(batch.cache), taps), self._record)
            some = slice(len(ids_T))
            return hidden_Td[some].clone(), None if features_TF is None else features_TF[some].clone()


def captured_steps(run: Run, cache: KVCache, ids_T: Tensor, taps: Sequence[int], record: bool) -> CapturedSteps | None:
    """Those of ``run``, tried with ``ids_T`` in an empty ``cache`` of one block; None, with a warning, for a model that
    can't be recorded or leaves other numbers then.
    """
    steps, batch = CapturedSteps(run, record), RaggedBatch(cache, cache.tables(), [len(ids_T)])
    expected = run(ids_T, batch, taps)
    try:
        found = steps.run(ids_T, batch, tuple(taps))
    except RuntimeError as error:  # whatever a recording finds that it can't hold
        warnings.warn(f"steps are not recorded on this GPU: {first_line(error)}", stacklevel=2)
        return None
    assert found is not None, "the step is small"
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None and (a - b).abs().max() > _TOLERANCE[a.dtype] * b.abs().max():
            warnings.warn("steps are not recorded on this GPU: they left other numbers", stacklevel=2)
            return None
    return steps


class _Recorded:
    """A step of T tokens with M blocks each."""

    def __init__(self, device: torch.device, tokens: int, blocks: int) -> None:
        self.ids_T, self._positions_T, self._rows_T = torch.zeros(3, tokens, dtype=torch.int64, device=device)
        self._blocks_TM = torch.zeros(tokens, blocks, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._left: Left | None = None

    def lay_out(self, ids_T: Tensor, batch: RaggedBatch) -> None:
        """Say what the step is."""
        at_T = torch.arange(len(self.ids_T)).clamp(max=len(ids_T) - 1)
        width = self._blocks_TM.shape[1]
        tables = [table.blocks[:width] for table, n in batch.parts for _ in range(n)]
        blocks_TM = torch.tensor([[*each, *[each[0]] * (width - len(each))] for each in tables])
        self._blocks_TM.copy_(blocks_TM[at_T])
        at_T = at_T.to(ids_T.device)
        for own, given in ((self.ids_T, ids_T), (self._positions_T, batch.positions_T), (self._rows_T, batch.rows_T)):
            own.copy_(given[at_T])

    def batch(self, cache: KVCache) -> Step:
        """Where its tokens belong; a new one each time, since masks and angles that one has made are kept."""
        plan = FixedPlan(self._blocks_TM, self._positions_T, cache.size)
        return Step(cache, self._positions_T, self._rows_T, plan)

    def __call__(self, forward: Callable[[], Left], record: bool) -> Left:
        if not record:
            return forward()
        if self._graph is None or self._left is None:
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(_WARM):
                    forward()
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._left = forward()
        self._graph.replay()
        return self._left
