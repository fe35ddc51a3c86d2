"""Where fetched things go."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.foundation.cache import cache_dir


def test_the_nearest_wish_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DSPARK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "dspark"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "dspark"
    monkeypatch.setenv("DSPARK_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    assert not (tmp_path / "own").exists()
