"""Settings that suit a CPU better than core's defaults."""

from __future__ import annotations

from chiplet.api import DeviceProbe, Proposal

_MEMORY_FRACTION = 0.5


def propose(device: DeviceProbe) -> list[Proposal]:
    """Proposals for a CPU, none for another device."""
    if device.device_type != "cpu":
        return []
    reason = "main memory is shared with the rest of the machine"
    return [Proposal("cache.mem_fraction_static", _MEMORY_FRACTION, reason)]
