"""Hooks of the CPU plugin. What needs torch is imported inside them."""

from __future__ import annotations

import chiplet.api as api
from chiplet_cpu import checks, defaults, native
from chiplet_cpu import host as this_host
from chiplet_cpu.placement import PlacementOptions


class Given:
    """What hook `configure` was told, for the hooks after it.

    Attributes:
        placement: of threads and memory.
    """

    placement = PlacementOptions()


GIVEN = Given()


@api.hookimpl
def configure(context: api.PluginContext) -> None:
    """Take what the user said of threads, nodes and instruction sets."""
    GIVEN.placement = PlacementOptions.read(context.options)
    wanted = context.options.get("isa")
    if wanted is not None:
        native.use_instruction_set(wanted)


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    """The host's processors, as one device."""
    return [this_host.probe_device(host)]


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    """The CPU platform."""
    from chiplet_cpu.platform import CpuPlatform  # noqa: PLC0415

    return CpuPlatform(device, GIVEN.placement)


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """Blocks of paged keys and values; or gathered pages, then torch's fused attention."""
    from chiplet_cpu.attention.ipex import IpexAttentionProvider  # noqa: PLC0415
    from chiplet_cpu.attention.native import NativeAttentionProvider  # noqa: PLC0415
    from chiplet_cpu.attention.paged import PagedSdpaProvider  # noqa: PLC0415

    if device.device_type != "cpu":
        return []
    return [NativeAttentionProvider(), PagedSdpaProvider(), IpexAttentionProvider()]


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """Panels and oneDNN's packed weights, and plain torch for the rest."""
    from chiplet_cpu.linear.native import NativeInt8Provider, NativeLinearProvider  # noqa: PLC0415
    from chiplet_cpu.linear.onednn import OneDnnProvider  # noqa: PLC0415
    from chiplet_cpu.linear.plain import TorchLinearProvider  # noqa: PLC0415
    from chiplet_cpu.linear.weight_memory import WeightMemory  # noqa: PLC0415

    memory = WeightMemory()
    providers: list[api.LinearProvider] = [
        NativeInt8Provider(memory),
        NativeLinearProvider(memory),
        OneDnnProvider(),
        TorchLinearProvider(),
    ]
    return providers if device.device_type == "cpu" else []


@api.hookimpl
def moe(device: api.DeviceProbe) -> list[api.MoeProvider]:
    """Experts on the tokens that picked them."""
    from chiplet_cpu.moe.grouped import GroupedMoeProvider  # noqa: PLC0415

    return [GroupedMoeProvider()] if device.device_type == "cpu" else []


@api.hookimpl
def ops(device: api.DeviceProbe) -> list[api.OpProvider]:
    """Fused kernels, and what torch does better than the reference."""
    from chiplet_cpu.ops.ipex import IpexOpsProvider  # noqa: PLC0415
    from chiplet_cpu.ops.native import NativeOpsProvider  # noqa: PLC0415
    from chiplet_cpu.ops.provider import TorchOpsProvider  # noqa: PLC0415

    if device.device_type != "cpu":
        return []
    return [NativeOpsProvider(), TorchOpsProvider(), IpexOpsProvider()]


@api.hookimpl
def communication(
    device: api.DeviceProbe, topology: api.Topology
) -> list[api.CommunicationProvider]:
    """Memory that ranks share."""
    from chiplet_cpu.communicator import SharedMemoryProvider  # noqa: PLC0415

    return [SharedMemoryProvider(topology)] if device.device_type == "cpu" else []


@api.hookimpl
def config_proposals(config: api.EngineConfig, device: api.DeviceProbe) -> list[api.Proposal]:
    """Better defaults for main memory."""
    return defaults.propose(device)


@api.hookimpl
def doctor(device: api.DeviceProbe | None) -> list[api.Check]:
    """Instruction sets, cores and memory."""
    return checks.run_checks(device)
