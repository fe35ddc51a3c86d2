"""What the garbage collector goes through while somebody waits for a token."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def what_is_loaded_stays() -> Iterator[None]:
    """Meanwhile the collector leaves alone all that there is now.

    Behind a loaded model it has some 400,000 objects to go through, which stops every request for two to three tenths
    of a second each time (docs/lab_log.md), and none of them is garbage before the model is.
    """
    gc.collect()  # what is garbage now would stay as well
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
