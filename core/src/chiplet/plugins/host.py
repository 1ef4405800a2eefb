"""Facts about the host that plugins are told."""

from __future__ import annotations

import os
import platform

import psutil

from chiplet.api import HostFacts


def host_facts() -> HostFacts:
    """What core knows of this host without a plugin."""
    return HostFacts(
        machine=platform.machine(),
        num_cores=_usable_cores(),
        total_memory_bytes=psutil.virtual_memory().total,
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
