"""The folder for things that can be fetched or made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$DSPARK_CACHE``, else ``$XDG_CACHE_HOME/dspark``, else ``~/.cache/dspark``; not created here."""
    own = os.environ.get("DSPARK_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "dspark"
