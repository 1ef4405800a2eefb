"""Hooks of the TPU plugin. What needs torch or a compiler is imported inside them."""

from __future__ import annotations

import chiplet.api as api
from chiplet_tpu import checks, chips, defaults


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    """The TPUs on the PCI bus."""
    return chips.find_chips()


@api.hookimpl
def emulated(host: api.HostFacts) -> api.DeviceProbe:
    """XLA's CPU backend."""
    return chips.emulated_chip(host)


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    """The TPU platform."""
    from chiplet_tpu.platform import TpuPlatform  # noqa: PLC0415

    return TpuPlatform(device)


@api.hookimpl
def compilation(device: api.DeviceProbe) -> list[api.CompilationProvider]:
    """jax, and torch_xla."""
    from chiplet_tpu.compilation import providers  # noqa: PLC0415

    return providers.compilers(device)


@api.hookimpl
def attention(device: api.DeviceProbe) -> list[api.AttentionProvider]:
    """Kernels in Pallas, and a gather for the rest."""
    from chiplet_tpu import providers  # noqa: PLC0415

    return providers.attention(device)


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """XLA's product, and kernels for weights of 8 bits."""
    from chiplet_tpu import providers  # noqa: PLC0415

    return providers.linear(device)


@api.hookimpl
def ops(device: api.DeviceProbe) -> list[api.OpProvider]:
    """What XLA fuses, and sampling without float64."""
    from chiplet_tpu import providers  # noqa: PLC0415

    return providers.ops(device)


@api.hookimpl
def communication(
    device: api.DeviceProbe, topology: api.Topology
) -> list[api.CommunicationProvider]:
    """Collectives inside the program."""
    from chiplet_tpu import providers  # noqa: PLC0415

    return providers.communication(device)


@api.hookimpl
def config_proposals(config: api.EngineConfig, device: api.DeviceProbe) -> list[api.Proposal]:
    """Steps of a size that a TPU is filled by."""
    return defaults.propose(device)


@api.hookimpl
def doctor(device: api.DeviceProbe | None) -> list[api.Check]:
    """Chips, compilers and libtpu."""
    return checks.run_checks(device)
