"""Where the engine's threads and memory go: how many threads, on which processors and nodes."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeVar

from chiplet_cpu.topology import Node

T = TypeVar("T")

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
        rank, num_ranks: which of how many processes that share all this; not the user's to set.
    """

    threads: int | None = None
    pin: bool = False
    numa_node: int | None = None
    rank: int = 0
    num_ranks: int = 1

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
        is_kept: threads keep to `processors`.
        memory_parts: ranks that share the memory of `nodes`.
    """

    threads: int
    processors: tuple[int, ...]
    pins: tuple[int, ...]
    policy: MemoryPolicy
    nodes: tuple[int, ...]
    reason: str
    is_kept: bool = False
    memory_parts: int = 1


@dataclass(frozen=True, slots=True)
class _Share:
    """What a rank has of the nodes.

    Attributes:
        nodes: with the cores that are its own.
        memory_parts: ranks that share the memory of these nodes.
        words: for people; empty where there is one rank.
    """

    nodes: tuple[Node, ...]
    memory_parts: int = 1
    words: str = ""


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
    share = _share(nodes, options.rank, options.num_ranks)
    is_split = options.num_ranks > 1 and len(nodes) > 1
    nodes = share.nodes
    processors = tuple(each for node in nodes for each in node.processors)
    if quota is not None:
        quota = max(1, quota // options.num_ranks)
    threads, reason = _threads(nodes, quota, options, faster, environment)
    if share.words:
        reason = f"{share.words}: {reason}"
    if options.pin and threads > len(processors):
        raise ValueError(
            f"pin is on for {threads} threads on {len(processors)} processors; allowed: as many"
        )
    policy = MemoryPolicy.LOCAL
    if options.numa_node is not None:
        policy, reason = MemoryPolicy.BIND, f"{reason}; memory of node {options.numa_node} alone"
    elif is_split and len(nodes) == 1:
        policy, reason = MemoryPolicy.BIND, f"{reason}; memory of that node alone"
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
        is_kept=policy is MemoryPolicy.BIND or is_split,
        memory_parts=share.memory_parts,
    )


def _share(nodes: Sequence[Node], rank: int, num_ranks: int) -> _Share:
    """A node for each rank, or equally many ranks on each; otherwise equal parts of all cores."""
    if num_ranks == 1:
        return _Share(tuple(nodes))
    per_node, is_uneven = divmod(num_ranks, len(nodes))
    if is_uneven:
        cores = [(node, core) for node in nodes for core in node.cores]
        mine = _part(cores, rank, num_ranks)
        kept = {id(node): node for node, _ in mine}.values()
        held = tuple(
            replace(node, cores=tuple(core for owner, core in mine if owner is node))
            for node in kept
        )
        return _Share(held, num_ranks, f"{len(mine)} of {len(cores)} cores")
    node = nodes[rank // per_node]
    mine = _part(node.cores, rank % per_node, per_node)
    words = _counted(len(mine), "core")
    if per_node > 1:
        words = f"{len(mine)} of {_counted(len(node.cores), 'core')}"
    if len(nodes) > 1:
        words = f"{words} of node {node.index}"
    if per_node > len(node.cores):
        words = f"{words}, for {per_node} ranks"
    return _Share((replace(node, cores=mine),), per_node, words)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _part(things: Sequence[T], index: int, count: int) -> tuple[T, ...]:
    """A run of things, of nearly equal length; where there are fewer than parts, one of them."""
    if len(things) < count:
        return (things[index % len(things)],)
    return tuple(things[index * len(things) // count : (index + 1) * len(things) // count])


def apply_to_thread(placement: Placement) -> None:
    """Put the calling thread, and what it starts from now on, where the placement says."""
    if placement.is_kept and hasattr(os, "sched_setaffinity"):
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
        return num_cores, f"{_counted(num_cores, 'thread')}, one for each core"
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
