"""Hooks of the CPU plugin. What needs torch is imported inside them."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import (
    AttentionProvider,
    Check,
    DeviceProbe,
    HostFacts,
    LinearProvider,
    OpProvider,
    Platform,
    hookimpl,
)
from chiplet_cpu import host as this_host
from chiplet_cpu.checks import run_checks


@hookimpl
def probe(host: HostFacts) -> Sequence[DeviceProbe]:
    """The host's processors, as one device."""
    return [this_host.probe_device(host)]


@hookimpl
def platform(device: DeviceProbe) -> Platform:
    """The CPU platform."""
    from chiplet_cpu.platform import CpuPlatform  # noqa: PLC0415

    return CpuPlatform(device)


@hookimpl
def attention(device: DeviceProbe) -> Sequence[AttentionProvider]:
    """Gather pages, then torch's fused attention."""
    if device.device_type != "cpu":
        return []
    from chiplet_cpu.attention.paged import PagedSdpaProvider  # noqa: PLC0415

    return [PagedSdpaProvider()]


@hookimpl
def linear(device: DeviceProbe) -> Sequence[LinearProvider]:
    """Packed oneDNN weights, and plain torch for the rest."""
    if device.device_type != "cpu":
        return []
    from chiplet_cpu.linear.onednn import OneDnnProvider  # noqa: PLC0415
    from chiplet_cpu.linear.plain import TorchLinearProvider  # noqa: PLC0415

    return [OneDnnProvider(), TorchLinearProvider()]


@hookimpl
def ops(device: DeviceProbe) -> Sequence[OpProvider]:
    """Operations that torch does better than the reference."""
    if device.device_type != "cpu":
        return []
    from chiplet_cpu.ops.provider import TorchOpsProvider  # noqa: PLC0415

    return [TorchOpsProvider()]


@hookimpl
def doctor(device: DeviceProbe | None) -> Sequence[Check]:
    """Instruction sets, cores and memory."""
    return run_checks(device)
