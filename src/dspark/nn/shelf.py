"""Programs that are made for one size of step and kept while such steps come."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from dspark.kernels.program import Rooms
from dspark.nn.cache import KVCache

KEPT = 256  # programs of a cache, the latest used: steps of many sizes, drafts of a few lengths
_Made = TypeVar("_Made")


class Shelf(Generic[_Made]):
    """What an owner has made for its caches, by the sizes of a step; all of it shares rooms, so ``lock`` is held from
    ``get`` to the end of a run.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._rooms = Rooms()
        self._known: WeakKeyDictionary[KVCache, dict[tuple[int, ...], _Made]] = WeakKeyDictionary()

    def get(self, cache: KVCache, rows: int, sizes: tuple[int, ...], make: Callable[[Rooms], _Made]) -> _Made:
        """What was made for this cache and these ``sizes``, or is made now; its rooms are for ``rows`` rows."""
        if self._rooms.too_small(rows):
            self._known.clear()
        known, key = self._known.setdefault(cache, {}), (*sizes, torch.get_num_threads())
        made = known.pop(key, None)
        if made is None:
            with torch.inference_mode(False):  # what is kept here may be written to in either mode
                made = make(self._rooms)
        known[key] = made  # the latest last
        if len(known) > KEPT:
            del known[next(iter(known))]
        return made
