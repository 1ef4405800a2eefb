"""Platform: one kind of device, its memory and its capabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from chiplet.api.executable import Executable, ShapeBucket, Step, StepLimits

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
    """Memory of a device now.

    Attributes:
        free_bytes: that may still be allocated.
        total_bytes: of the device, or of the share of it that this process may use.
    """

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


class Execution(StrEnum):
    """How a platform runs a step."""

    OP = "op"
    """Operation by operation. Steps that recur may be recorded, to be replayed in one go; a step
    that fits no bucket, or whose bucket is not ready, runs as it is."""
    STEP = "step"
    """Compiled whole, in static shapes: some bucket must serve every step."""


class Platform(Protocol):
    """One device of one kind; exactly one is active per worker.

    Attributes:
        name: the device type, as in the probe.
        execution: how it runs a step.
    """

    name: str
    execution: Execution

    @property
    def torch_device(self) -> torch.device:
        """Where tensors go; an attribute will do."""
        ...

    def activate(self) -> None:
        """Make this the current device of the calling thread and set its thread counts.

        May block the first time, while the device's runtime starts.
        """
        ...

    def memory(self) -> MemoryInfo:
        """Memory of the device now, cgroup and other limits included. May block."""
        ...

    def supported_dtypes(self) -> tuple[str, ...]:
        """Floating-point types that run well, best first, by names like 'bfloat16'. Pure."""
        ...

    def record_event(self) -> Event:
        """Mark the end of what is queued now. Never blocks."""
        ...

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy of a host tensor to the device and return it; never waits for the device.

        Shapes: any; returns the same shape and type. The caller drops the source at once: whoever
        still reads it keeps it alive. Where the device is the host, the tensor itself may be
        returned.
        """
        ...

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy to host memory and return it; valid once a later event is done.

        Never waits for the device. Shapes: any; returns the same shape and type.
        """
        ...

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Shapes of steps to prepare, in this order; the smallest one that serves a step runs it.

        Pure: the same limits give the same buckets.

        Empty where every step runs operation by operation in its exact shape. With `Execution.STEP`
        some bucket must serve `limits.largest_step`.
        """
        ...

    def prepare(self, step: Step) -> Executable:
        """An executable of a step for its bucket; called once per bucket, never where `buckets` is
        empty. May take seconds.

        Called from a thread of its own, after `activate`, without gradients. With `Execution.OP`
        no step is launched meanwhile, and what runs on the device must come after the steps
        launched before: implementations share workspaces among all steps. With `Execution.STEP`
        steps are launched meanwhile, so nothing may run on the state.

        Raises:
            Exception: the bucket cannot be prepared. With `Execution.OP` its steps then run
                operation by operation, and a warning says so; with `Execution.STEP` the steps fail
                that no other bucket serves.
        """
        ...


@runtime_checkable
class ThreadedPlatform(Protocol):
    """What a platform adds whose implementations may run in several threads at a time.

    Core compares what it chose with the reference at start; so many comparisons then run side by
    side, and what they compile is compiled side by side. Those of one family and provider, or of
    one operation and provider, still run one after another, since they share kernels. Each thread
    calls `activate` first.

    Attributes:
        num_check_threads: comparisons at a time, at least 1.
    """

    num_check_threads: int
