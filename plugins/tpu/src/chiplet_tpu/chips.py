"""TPU chips of this host, found on the PCI bus: neither jax is imported nor a chip touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chiplet.api import DeviceProbe, HostFacts

PCI_DEVICES = Path("/sys/bus/pci/devices")
_VENDOR = 0x1AE0
EMULATED = "emulated"
"""Fact of a device for which the host's processor stands in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One generation.

    Attributes:
        name: as Google's documentation writes it.
        memory_bytes: of one chip.
        memory_bytes_per_s, bfloat16_flops: peaks of one chip, from the public system architecture
            pages of the Cloud TPU documentation.
        cores: devices that one chip shows to a program.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    bfloat16_flops: float
    cores: int = 1


_GIB = 2**30
GENERATIONS: dict[int, Chip] = {
    0x5E: Chip(name="v4", memory_bytes=32 * _GIB, memory_bytes_per_s=1.2e12, bfloat16_flops=275e12),
    0x62: Chip(
        name="v5p", memory_bytes=95 * _GIB, memory_bytes_per_s=2.765e12, bfloat16_flops=459e12
    ),
    0x63: Chip(
        name="v5e", memory_bytes=16 * _GIB, memory_bytes_per_s=0.819e12, bfloat16_flops=197e12
    ),
    0x6F: Chip(
        name="v6e", memory_bytes=32 * _GIB, memory_bytes_per_s=1.64e12, bfloat16_flops=918e12
    ),
    0x76: Chip(
        name="TPU7x",
        memory_bytes=192 * _GIB,
        memory_bytes_per_s=7.37e12,
        bfloat16_flops=2307e12,
        cores=2,
    ),
}
"""By PCI device id."""


def find_chips(root: Path = PCI_DEVICES) -> list[DeviceProbe]:
    """Every TPU device, one per core of a chip."""
    found: list[DeviceProbe] = []
    for folder in sorted(root.glob("*")):
        if _number(folder / "vendor") != _VENDOR:
            continue
        chip = GENERATIONS.get(_number(folder / "device"))
        for _ in range(chip.cores if chip else 0):
            assert chip is not None
            found.append(
                DeviceProbe(
                    device_type="tpu",
                    index=len(found),
                    name=f"TPU {chip.name.removeprefix('TPU')}",
                    total_memory_bytes=chip.memory_bytes // chip.cores,
                    facts={"generation": chip.name, "pci": folder.name},
                )
            )
    return found


def emulated_chip(host: HostFacts) -> DeviceProbe:
    """The stand-in for a TPU."""
    return DeviceProbe(
        device_type="tpu",
        index=0,
        name="emulated by XLA's CPU backend",
        total_memory_bytes=host.total_memory_bytes,
        facts={EMULATED: "yes"},
    )


def is_emulated(device: DeviceProbe) -> bool:
    """Whether the host's processor stands in for it."""
    return EMULATED in device.facts


def _number(path: Path) -> int:
    """A number as sysfs writes it, -1 if it cannot be read."""
    try:
        return int(path.read_text().strip(), 16)
    except (OSError, ValueError):
        return -1
