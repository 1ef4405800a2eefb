"""Facts about the host's processors, found without torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from chiplet.api import DeviceProbe, HostFacts, MemoryInfo
from chiplet_cpu.cgroup import cpu_quota, memory_limit

# What makes a difference to inference, by the names that Linux gives on x86 and ARM.
_NOTABLE_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


def probe_device(host: HostFacts, root: Path = Path("/")) -> DeviceProbe:
    """The host's processors as one device."""
    name, flags = _processor(root)
    return DeviceProbe(
        device_type="cpu",
        index=0,
        name=name or platform.processor() or host.machine,
        total_memory_bytes=memory_info(root).total_bytes,
        facts={
            "machine": host.machine,
            "cores": str(usable_cores(root)),
            "isa": " ".join(each for each in _NOTABLE_FLAGS if each in flags),
        },
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: affinity and container limits considered."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, cpu_quota(root) or cores or 1)


def memory_info(root: Path = Path("/")) -> MemoryInfo:
    """Main memory now: the tighter of what the machine has and what a container allows."""
    memory = psutil.virtual_memory()
    limit = memory_limit(root)
    if limit is None:
        return MemoryInfo(free_bytes=memory.available, total_bytes=memory.total)
    return MemoryInfo(
        free_bytes=min(memory.available, limit.free_bytes),
        total_bytes=min(memory.total, limit.limit_bytes),
    )


def huge_page_switch(root: Path = Path("/")) -> str | None:
    """What the system says of huge pages, like "always [madvise] never"; None if it does not."""
    try:
        return (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text("ascii").strip()
    except OSError:
        return None


def _processor(root: Path) -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor; empty where there is no /proc/cpuinfo."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", ""), frozenset(flags.split())
