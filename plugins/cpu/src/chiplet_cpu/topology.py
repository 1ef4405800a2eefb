"""Processors, cores and NUMA nodes that this process may use, from Linux's /sys."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_NODES = "sys/devices/system/node"
_PROCESSORS = "sys/devices/system/cpu"


@dataclass(frozen=True, slots=True)
class Node:
    """Cores that reach one part of the main memory faster than the rest.

    Attributes:
        index: Linux's number.
        cores: processors of each core, which share its arithmetic units; several where a core
            runs several threads. Only those that the process may use.
        free_bytes: memory there that is free, or holds no more than cached files; 0 if unknown.
    """

    index: int
    cores: tuple[tuple[int, ...], ...]
    free_bytes: int = 0

    @property
    def processors(self) -> tuple[int, ...]:
        """All of them, first one of each core."""
        most = max(map(len, self.cores))
        return tuple(core[i] for i in range(most) for core in self.cores if i < len(core))


def read_nodes(root: Path = Path("/"), allowed: Collection[int] | None = None) -> tuple[Node, ...]:
    """Nodes with processors that the process may use, and whose memory it may use; one at least.

    Args:
        root: where /sys and /proc are.
        allowed: processors that the process may use; None asks the system, whose answer counts
            both what the user said and a container's cpuset.
    """
    if allowed is None:
        allowed = allowed_processors()
    memories = _allowed_memories(root)
    found = [
        Node(index, _cores(root, usable), _free_bytes(folder))
        for index, folder in _node_folders(root)
        if (usable := sorted(set(parse_list(_text(folder / "cpulist"))) & set(allowed)))
        and (memories is None or index in memories)
    ]
    return tuple(found) or (Node(0, _cores(root, sorted(allowed))),)


def allowed_processors() -> frozenset[int]:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def parse_list(text: str) -> list[int]:
    """Numbers of a list as Linux writes it: '0-3,8'. What is no such list gives none."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _cores(root: Path, processors: list[int]) -> tuple[tuple[int, ...], ...]:
    """Processors by core, in order of their first."""
    left, cores = dict.fromkeys(processors), list[tuple[int, ...]]()
    while left:
        first = next(iter(left))
        path = root / _PROCESSORS / f"cpu{first}/topology/thread_siblings_list"
        core = tuple(each for each in parse_list(_text(path)) if each in left) or (first,)
        cores.append(core)
        for each in {first, *core}:
            left.pop(each)
    return tuple(cores)


def _node_folders(root: Path) -> Iterator[tuple[int, Path]]:
    folders = (root / _NODES).glob("node[0-9]*")
    yield from sorted((int(each.name.removeprefix("node")), each) for each in folders)


def _allowed_memories(root: Path) -> set[int] | None:
    """Nodes that memory may come from: a container may have fewer; None if unknown."""
    for line in _text(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "Mems_allowed_list":
            return set(parse_list(value))
    return None


def _free_bytes(folder: Path) -> int:
    """Lines are like 'Node 0 MemFree:  123 kB'."""
    fields: dict[str, int] = {}
    for line in _text(folder / "meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdecimal():
            fields[name.split()[-1]] = int(number[0]) << 10
    return fields.get("MemFree", 0) + fields.get("Inactive(file)", 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
