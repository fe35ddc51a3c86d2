"""How much memory a process may use: the machine's, or less where it runs in a control group (a container)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = "sys/fs/cgroup"


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of the machine, or of the narrowest limit of the control groups (v2, v1) that this process is in.

    ``root``: where /proc and /sys are.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for file in _limits(root) if (limit := _read(file)) is not None)])


def _limits(root: Path) -> Iterator[Path]:
    """Files that may hold a limit: of the process's own group and of all around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, name = root / _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(group.lstrip("/"))
        for path in (own, *own.parents):  # the last one is the top, all that a container sees
            yield top / path / name


def _read(file: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    try:
        said = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(said) if said.isdecimal() else None
