"""What the garbage collector goes through while somebody waits for a token."""

from __future__ import annotations

import gc
import weakref

import pytest

from dspark.foundation.garbage import what_is_loaded_stays


class Knot:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_left_alone_and_what_comes_is_not() -> None:
    """Garbage of before goes, and what becomes garbage meanwhile."""
    gone, loaded = Knot(), Knot()
    before = weakref.ref(gone)
    del gone
    with what_is_loaded_stays():
        assert before() is None and gc.get_freeze_count() > 1000
        assert not any(each is loaded for each in gc.get_objects())
        meanwhile = Knot()
        seen = weakref.ref(meanwhile)
        del meanwhile
        gc.collect()
        assert seen() is None
    assert gc.get_freeze_count() == 0 and any(each is loaded for each in gc.get_objects())


def test_an_error_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ValueError, match="meanwhile"), what_is_loaded_stays():
        raise ValueError("meanwhile")
    assert gc.get_freeze_count() == 0
