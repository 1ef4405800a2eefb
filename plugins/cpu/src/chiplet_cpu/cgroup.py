"""Limits that a container or service manager puts on this process, from cgroup v1 or v2 files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOUNT = "sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A memory limit, in bytes.

    Attributes:
        used_bytes: counted against the limit now, without page cache that can be dropped.
    """

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What may still be taken."""
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The limit that leaves least, or None without one.

    A group's limit also holds for its children, so that all groups up to the root count.
    """
    limits = [*_memory_limits_v2(root), *_memory_limits_v1(root)]
    return min(limits, key=lambda each: each.free_bytes, default=None)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Cores' worth of time that this process may use, rounded up, or None without a limit."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _memory_limits_v2(root: Path) -> Iterator[MemoryLimit]:
    for folder in _folders(root, ""):
        limit = _number(folder / "memory.max")
        if limit is not None:
            used = _number(folder / "memory.current") or 0
            cache = _statistic(folder / "memory.stat", "inactive_file")
            yield MemoryLimit(limit, max(0, used - cache))


def _memory_limits_v1(root: Path) -> Iterator[MemoryLimit]:
    for folder in _folders(root, "memory"):
        limit = _number(folder / "memory.limit_in_bytes")
        # NOTE: v1 writes "no limit" as a number near 2^63.
        if limit is not None and limit < 1 << 60:
            used = _number(folder / "memory.usage_in_bytes") or 0
            cache = _statistic(folder / "memory.stat", "total_inactive_file")
            yield MemoryLimit(limit, max(0, used - cache))


def _quotas_v2(root: Path) -> Iterator[float]:
    for folder in _folders(root, ""):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0].isdecimal():
            yield int(words[0]) / int(words[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    for folder in _folders(root, "cpu"):
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if quota is not None and period:
            yield quota / period


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and its parents; `controller` is empty for v2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        base = root / _MOUNT / controller
        # Inside a container, the path is the host's while the mount shows the group itself.
        for folder in (base / group.lstrip("/"), *(base / group.lstrip("/")).parents):
            yield folder
            if folder == base:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _number(path: Path) -> int | None:
    """The number in a file; None if the file is missing or says 'max' or '-1'."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _statistic(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
