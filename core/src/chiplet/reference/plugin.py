"""Core's reference platform and kernels, registered through the hooks that outsiders use."""

from __future__ import annotations

from collections.abc import Sequence

from chiplet.api import (
    AttentionProvider,
    CommunicationProvider,
    DeviceProbe,
    HostFacts,
    LinearProvider,
    MoeProvider,
    OpProvider,
    Platform,
    Topology,
    hookimpl,
)


@hookimpl
def probe(host: HostFacts) -> Sequence[DeviceProbe]:
    """One device that is always there: main memory, and whatever torch does on it."""
    return [
        DeviceProbe(
            device_type="reference",
            index=0,
            name=f"plain torch on {host.machine}",
            total_memory_bytes=host.total_memory_bytes,
        )
    ]


@hookimpl
def platform(device: DeviceProbe) -> Platform:
    """The reference platform."""
    from chiplet.reference.platform import ReferencePlatform  # noqa: PLC0415

    return ReferencePlatform()


@hookimpl
def attention(device: DeviceProbe) -> Sequence[AttentionProvider]:
    """The reference, for any device."""
    from chiplet.reference.attention import ReferenceAttention  # noqa: PLC0415

    return [ReferenceAttention()]


@hookimpl
def linear(device: DeviceProbe) -> Sequence[LinearProvider]:
    """The reference, for any device."""
    from chiplet.reference.linear import ReferenceLinear  # noqa: PLC0415

    return [ReferenceLinear()]


@hookimpl
def moe(device: DeviceProbe) -> Sequence[MoeProvider]:
    """The reference, for any device."""
    from chiplet.reference.moe import ReferenceMoe  # noqa: PLC0415

    return [ReferenceMoe()]


@hookimpl
def ops(device: DeviceProbe) -> Sequence[OpProvider]:
    """The reference, for any device."""
    from chiplet.reference.ops import ReferenceOps  # noqa: PLC0415

    return [ReferenceOps()]


@hookimpl
def communication(device: DeviceProbe, topology: Topology) -> Sequence[CommunicationProvider]:
    """The reference, for any device."""
    from chiplet.reference.communication import ReferenceCommunication  # noqa: PLC0415

    return [ReferenceCommunication(topology)]
