"""Platform: one kind of device, its memory and its capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What core knows of the host before any plugin is asked.

    Attributes:
        machine: processor architecture, like 'x86_64'.
        num_cores: cores that this process may use.
        total_memory_bytes: main memory.
    """

    machine: str
    num_cores: int
    total_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProbe:
    """One device that a platform plugin found.

    Attributes:
        device_type: the word that `--device` takes.
        index: which of its kind.
        name: for people, like a product name.
        total_memory_bytes: memory of the device.
        facts: anything else worth showing, like instruction sets or driver versions.
    """

    device_type: str
    index: int
    name: str
    total_memory_bytes: int
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """Memory of a device, in bytes, now."""

    free_bytes: int
    total_bytes: int


class Event(Protocol):
    """A mark in the device's queue of work."""

    def is_done(self) -> bool:
        """Whether everything queued before the mark has run. Never blocks."""
        ...

    def wait(self) -> None:
        """Block until everything queued before the mark has run.

        Raises:
            Exception: the device reports a fault.
        """
        ...


class DoneEvent:
    """An event of a device that does everything at once."""

    def is_done(self) -> bool:
        """Always true."""
        return True

    def wait(self) -> None:
        """Returns at once."""


class Platform(Protocol):
    """One device of one kind; exactly one is active per worker.

    Attributes:
        name: the device type, as in the probe.
        torch_device: where tensors go.
    """

    name: str
    torch_device: torch.device

    def activate(self) -> None:
        """Make this the current device of the calling thread and set its thread counts."""
        ...

    def memory(self) -> MemoryInfo:
        """Memory of the device now, cgroup and other limits included. May block."""
        ...

    def supported_dtypes(self) -> tuple[str, ...]:
        """Floating-point types that run well, best first, by names like 'bfloat16'."""
        ...

    def record_event(self) -> Event:
        """Mark the end of what is queued now. Never blocks."""
        ...

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy of a host tensor to the device and return it; never waits for the device.

        The caller drops the source at once: whoever still reads it keeps it alive. Where the
        device is the host, the tensor itself may be returned.
        """
        ...

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy to host memory and return it; valid once a later event is done."""
        ...
