"""Where the keys and values of an engine's requests lie: the target's cache and the drafter's room."""

from __future__ import annotations

from dspark.drafters.drafter import Drafter, Room
from dspark.nn.cache import KVCache
from dspark.targets.model import Target


class Caches:
    """``count`` blocks of ``size`` positions in both, which have the same numbers; the room is None without a drafter.

    An engine that is done may leave them to the next one, which spares their memory and the programs made for them.
    """

    def __init__(self, target: Target, drafter: Drafter | None, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.target: KVCache = target.new_cache(count, size)
        self.room: Room | None = None if drafter is None else drafter.new_room(count, size)

    def emptied(self) -> Caches:
        """The same for other requests: what rows wait to be made is nobody's any more."""
        if self.room is not None:
            for block in range(self.count):
                self.room.drop(block)
            self.room.late()
        return self
