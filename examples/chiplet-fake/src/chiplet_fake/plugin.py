"""Hooks of the fake device. What needs torch is imported inside them."""

from __future__ import annotations

from chiplet import api
from chiplet_fake.faults import FAULTS


@api.hookimpl
def configure(context: api.PluginContext) -> None:
    """Take the size of the device's memory."""
    given = context.options.get("memory_mib")
    if given is None:
        return
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"memory_mib is '{given}'; allowed: a number of MiB, 1 or more")
    from chiplet_fake.hardware.memory import MEMORY  # noqa: PLC0415

    MEMORY.total_bytes = int(given) << 20


@api.hookimpl
def probe(host: api.HostFacts) -> list[api.DeviceProbe]:
    """The one device that is always there."""
    FAULTS.at_probe()
    from chiplet_fake.hardware.memory import MEMORY  # noqa: PLC0415

    return [
        api.DeviceProbe(
            device_type="fake",
            index=0,
            name=f"accelerator pretended by {host.machine}",
            total_memory_bytes=MEMORY.total_bytes,
            facts={"streams": "1", "graphs": "yes"},
        )
    ]


@api.hookimpl
def platform(device: api.DeviceProbe) -> api.Platform:
    """The platform of the device."""
    from chiplet_fake.platform import FakePlatform  # noqa: PLC0415

    return FakePlatform()


@api.hookimpl
def linear(device: api.DeviceProbe) -> list[api.LinearProvider]:
    """None of its own, but a broken one where a fault is wanted of it."""
    if device.device_type != "fake" or not FAULTS.breaks_linear:
        return []
    from chiplet_fake.broken_linear import BrokenLinear  # noqa: PLC0415

    return [BrokenLinear(FAULTS)]
