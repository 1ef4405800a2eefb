"""What the plugin offers on a device. A compiler's library is imported only if it is installed."""

from __future__ import annotations

from chiplet.api import (
    AttentionProvider,
    CommunicationProvider,
    DeviceProbe,
    LinearProvider,
    OpProvider,
)
from chiplet_tpu.attention.gather import GatherProvider
from chiplet_tpu.linear.xla import XlaLinearProvider
from chiplet_tpu.ops.sampling import TwoLevelSamplingProvider
from chiplet_tpu.ops.xla import XlaOpsProvider
from chiplet_tpu.versions import JAX_LIBRARIES, missing


def attention(device: DeviceProbe) -> list[AttentionProvider]:
    """Attention providers."""
    if device.device_type != "tpu":
        return []
    if missing(*JAX_LIBRARIES):
        return [GatherProvider()]
    from chiplet_tpu.attention.pallas import PallasAttentionProvider  # noqa: PLC0415
    from chiplet_tpu.attention.ragged import RaggedAttentionProvider  # noqa: PLC0415

    return [
        RaggedAttentionProvider(device),
        PallasAttentionProvider(device),
        GatherProvider(),
    ]


def linear(device: DeviceProbe) -> list[LinearProvider]:
    """Linear providers."""
    if device.device_type != "tpu":
        return []
    if missing(*JAX_LIBRARIES):
        return [XlaLinearProvider()]
    from chiplet_tpu.linear.scaled import ScaledLinearProvider  # noqa: PLC0415

    return [XlaLinearProvider(), ScaledLinearProvider(device)]


def ops(device: DeviceProbe) -> list[OpProvider]:
    """Providers of other operations."""
    if device.device_type != "tpu":
        return []
    return [XlaOpsProvider(), TwoLevelSamplingProvider()]


def communication(device: DeviceProbe) -> list[CommunicationProvider]:
    """Collectives."""
    if device.device_type != "tpu" or missing(*JAX_LIBRARIES):
        return []
    from chiplet_tpu.communicator import MeshCommunicationProvider  # noqa: PLC0415

    return [MeshCommunicationProvider()]
