"""The memory that a process may use is the narrowest limit around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark.foundation.memory import memory_bytes

MACHINE = memory_bytes(Path("/nowhere"))


def system(root: Path, groups: str, **files: str) -> Path:
    """A root with /proc and /sys of a process in these control groups; ``files`` by path, "__" for "/"."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, said in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "1000000"}, 1_000_000),  # all that a container sees
        ("0::/a/b\n", {"a__b__memory.max": "max", "a__memory.max": "3000"}, 3000),  # of the group around it
        ("0::/a\n", {"a__memory.max": "max"}, MACHINE),
        ("0::/a\n", {"a__memory.max": str(2**62)}, MACHINE),
        ("0::/a\n", {"other__memory.max": "5"}, MACHINE),
        ("5:cpu,memory:/j\n0::/\n", {"memory__j__memory.limit_in_bytes": "7000"}, 7000),
        ("5:memory:/j\n", {"memory__memory.limit_in_bytes": "8000"}, 8000),  # a container's path is another's
        ("5:cpu:/j\n", {"memory__j__memory.limit_in_bytes": "7000"}, MACHINE),
    ],
)
def test_the_narrowest_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert memory_bytes(system(tmp_path, groups, **files)) == expected


def test_without_control_groups_it_is_the_machine() -> None:
    assert MACHINE > 2**20
