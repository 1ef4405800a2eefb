"""Checks for `chiplet doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import Check, CheckStatus, DeviceProbe
from chiplet_cpu import ipex, native
from chiplet_cpu.host import huge_page_switch, memory_info, usable_cores
from chiplet_cpu.topology import Node, read_nodes

_SMALL_MEMORY_BYTES = 2 << 30
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def run_checks(device: DeviceProbe | None) -> list[Check]:
    """One line each on cores, instruction sets, kernels, memory and its pages."""
    if device is None:
        return []
    checks = [_cores(), _instruction_sets(device), _kernels(), _memory(), _huge_pages()]
    nodes = read_nodes()
    if len(nodes) > 1:
        checks.append(_nodes(nodes))
    return [*checks, _ipex()] if ipex.installed() else checks


def _cores() -> Check:
    cores = usable_cores()
    if cores == 1:
        return Check(
            "cpu cores",
            CheckStatus.WARNING,
            "one core; server and engine will share it",
            "Give the process more cores.",
        )
    return Check("cpu cores", CheckStatus.OK, f"{cores} usable")


def _instruction_sets(device: DeviceProbe) -> Check:
    found = device.facts.get("isa", "")
    detail = f"{device.name}: {found or 'no notable instruction sets'}"
    if not _BFLOAT16_FLAGS & set(found.split()):
        # No fault: nothing can be mended.
        detail += "; no bfloat16 arithmetic, so that float32 is preferred"
    return Check("cpu instruction sets", CheckStatus.OK, detail)


def _kernels() -> Check:
    if not native.is_available():
        detail = f"{native.explanation()}; torch's operations serve instead"
        return Check("cpu kernels", CheckStatus.WARNING, detail, native.remedy())
    served = f"{native.instruction_set()} serves"
    return Check(
        "cpu kernels", CheckStatus.OK, f"{served}, of {', '.join(native.instruction_sets())}"
    )


def _memory() -> Check:
    memory = memory_info()
    detail = f"{memory.free_bytes >> 20} of {memory.total_bytes >> 20} MiB free"
    if memory.free_bytes < _SMALL_MEMORY_BYTES:
        remedy = "Free memory or raise the container's limit."
        return Check("cpu memory", CheckStatus.WARNING, detail, remedy)
    return Check("cpu memory", CheckStatus.OK, detail)


def _huge_pages() -> Check:
    switch = huge_page_switch()
    if switch is None:
        return Check("cpu huge pages", CheckStatus.OK, "the system does not tell of any")
    if "[never]" in switch:
        return Check(
            "cpu huge pages",
            CheckStatus.WARNING,
            f"refused ({switch}); one stream is served at two thirds of its speed",
            "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    return Check("cpu huge pages", CheckStatus.OK, f"granted to who asks ({switch})")


def _nodes(nodes: Sequence[Node]) -> Check:
    """No fault: an engine serves on several nodes too, at the cost of traffic between them."""
    sizes = ", ".join(f"{each.index} of {len(each.cores)} cores" for each in nodes)
    detail = (
        f"{sizes}; an engine's memory comes from all in turn. With --tensor-parallel-size "
        f"{len(nodes)} each node has a rank with memory of its own; a server for each node, with "
        f"--plugin-option chiplet-cpu.numa_node={nodes[0].index} and so on, has no traffic between"
    )
    return Check("cpu nodes", CheckStatus.OK, detail)


def _ipex() -> Check:
    """It helps nobody who has it by accident, and breaks imports beside another torch."""
    detail = f"{ipex.DISTRIBUTION} {ipex.installed()} is retired: {ipex.RETIRED}"
    why = ipex.explanation()
    if why:
        return Check("cpu extension", CheckStatus.WARNING, f"{detail}; {why}", ipex.remedy())
    return Check(
        "cpu extension", CheckStatus.OK, f"{detail}; it serves where nothing else does, or --use"
    )
