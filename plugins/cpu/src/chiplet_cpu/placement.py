"""Where the engine's threads and memory go: how many threads, on which processors and nodes."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from chiplet_cpu.topology import Node

_log = logging.getLogger(__name__)

Faster = Callable[[int, int], tuple[int, str]]
"""Which of two numbers of threads is faster, measured now; and the figures, for people."""


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """What the user may set with `--plugin-option`.

    Attributes:
        threads: how many; None leaves the choice to the plugin.
        pin: whether each thread keeps to one processor.
        numa_node: the only node whose processors and memory are used; None for all.
    """

    threads: int | None = None
    pin: bool = False
    numa_node: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, str]) -> PlacementOptions:
        """From the options' texts.

        Raises:
            ValueError: one is not allowed; the text says what is.
        """
        pin = given.get("pin", "off")
        if pin not in ("on", "off"):
            raise ValueError(f"pin is '{pin}'; allowed: on, off")
        return cls(
            threads=_number(given, "threads", least=1),
            pin=pin == "on",
            numa_node=_number(given, "numa_node", least=0),
        )


class MemoryPolicy(IntEnum):
    """Where new memory comes from; numbers are Linux's."""

    LOCAL = 0
    """The node of the thread that first writes to it."""
    BIND = 2
    """The nodes given, and no other."""
    INTERLEAVE = 3
    """The nodes given, page by page in turn."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision, and why.

    Attributes:
        threads: that work on an operation, the calling one included.
        processors: the process may use these only.
        pins: the processor of each thread; empty where they may move. The first one is left to
            the calling thread, which is not bound: what it starts would be bound too.
        policy: where memory comes from.
        nodes: of `policy`.
        reason: for the log.
    """

    threads: int
    processors: tuple[int, ...]
    pins: tuple[int, ...]
    policy: MemoryPolicy
    nodes: tuple[int, ...]
    reason: str


def place(
    nodes: Sequence[Node],
    quota: int | None,
    options: PlacementOptions,
    faster: Faster,
    environment: Mapping[str, str] = os.environ,
) -> Placement:
    """Decide.

    Args:
        nodes: that the process may use.
        quota: cores' worth of time that a container allows; None for all.
        options: what the user set.
        faster: asked where cores run several threads each.
        environment: OMP_NUM_THREADS is heeded.

    Raises:
        ValueError: the node asked for is not there, or there are fewer processors than threads.
    """
    if options.numa_node is not None:
        known = ", ".join(str(each.index) for each in nodes)
        nodes = [each for each in nodes if each.index == options.numa_node]
        if not nodes:
            raise ValueError(f"numa_node is {options.numa_node}; this process may use: {known}")
    processors = tuple(each for node in nodes for each in node.processors)
    threads, reason = _threads(nodes, quota, options, faster, environment)
    if options.pin and threads > len(processors):
        raise ValueError(
            f"pin is on for {threads} threads on {len(processors)} processors; allowed: as many"
        )
    policy = MemoryPolicy.LOCAL
    if options.numa_node is not None:
        policy, reason = MemoryPolicy.BIND, f"{reason}; memory of node {options.numa_node} alone"
    elif len(nodes) > 1:
        # Weights are written by one thread, and would all lie on its node.
        policy, reason = MemoryPolicy.INTERLEAVE, f"{reason}; memory of {len(nodes)} nodes in turn"
    return Placement(
        threads=threads,
        processors=processors,
        pins=_pins(nodes, threads) if options.pin else (),
        policy=policy,
        nodes=tuple(each.index for each in nodes),
        reason=reason,
    )


def apply_to_thread(placement: Placement) -> None:
    """Put the calling thread, and what it starts from now on, where the placement says."""
    is_restricted = placement.policy is MemoryPolicy.BIND
    if is_restricted and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, placement.processors)
    if placement.policy is not MemoryPolicy.LOCAL and not _set_policy(placement):
        _log.warning(
            "Linux does not let this process choose NUMA nodes for its memory; it comes from the "
            "node of whoever writes first. A container may need the capability SYS_NICE, or a "
            "seccomp profile that allows set_mempolicy."
        )


def _threads(
    nodes: Sequence[Node],
    quota: int | None,
    options: PlacementOptions,
    faster: Faster,
    environment: Mapping[str, str],
) -> tuple[int, str]:
    """How many, and why."""
    if options.threads is not None:
        return options.threads, f"{options.threads} threads, as the option says"
    told = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    if told.isdecimal() and int(told) > 0:
        return int(told), f"{told} threads, as OMP_NUM_THREADS says"
    num_cores = sum(len(node.cores) for node in nodes)
    num_processors = sum(len(node.processors) for node in nodes)
    if quota is not None and quota <= num_cores:
        return quota, f"{quota} threads, as much time as the container has"
    if num_processors == num_cores:
        return num_cores, f"{num_cores} threads, one for each core"
    most = min(num_processors, quota or num_processors)
    best, figures = faster(num_cores, most)
    return best, f"{best} threads on {num_cores} cores: {figures}"


def _pins(nodes: Sequence[Node], threads: int) -> tuple[int, ...]:
    """A processor for each thread: a core of its own, as long as there are cores."""
    firsts = [core[0] for node in nodes for core in node.cores]
    others = [each for node in nodes for core in node.cores for each in core[1:]]
    return tuple((firsts + others)[:threads])


def _number(given: Mapping[str, str], name: str, *, least: int) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is '{text}'; allowed: a number, {least} or more")
    return int(text)


_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""Numbers of the system call, for which the C library has no function."""


def _set_policy(placement: Placement) -> bool:
    """Ask Linux; whether it agreed. Of the calling thread, and of those that it starts."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None or sys.platform != "linux":
        return False
    bits = ctypes.c_ulong * (max(placement.nodes) // 64 + 1)
    mask = bits()
    for node in placement.nodes:
        mask[node // 64] |= 1 << node % 64
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    # One bit more than the mask has: Linux takes one off.
    size = ctypes.c_ulong(64 * len(mask) + 1)
    return syscall(ctypes.c_long(number), ctypes.c_int(placement.policy), mask, size) == 0
