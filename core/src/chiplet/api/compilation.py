"""Compilation: who turns whole steps into programs of a device, where there is more than one way.

A platform with `Execution.STEP` may leave its runtime open: compilers of several libraries can
serve the same device. Such a platform is a `CompilingPlatform`; core asks the providers, as it does
for every operation, and gives the platform the one that was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from chiplet.api.executable import Executable, Step
from chiplet.api.features import Feature
from chiplet.api.platform import Event, MemoryInfo
from chiplet.api.provider import Provider

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilationRequest:
    """The compiler of a device's steps; `--use compilation/step=NAME` pins one.

    Attributes:
        num_ranks: devices that one program is to span.
        features: derived from the field above; checked before `assess`.
    """

    num_ranks: int = 1

    @property
    def features(self) -> frozenset[Feature]:
        """What goes beyond the plain case."""
        return frozenset({Feature.ONE_PROGRAM}) if self.num_ranks > 1 else frozenset()


class StepCompiler(Protocol):
    """Compiles whole steps, and keeps the tensors that they work on.

    The methods are those of `Platform`, which hands them on.

    Attributes:
        torch_device: where tensors of the model go.
    """

    torch_device: torch.device

    def activate(self) -> None:
        """Make the device current in the calling thread. May block the first time."""
        ...

    def memory(self) -> MemoryInfo:
        """Memory of one device now. May block."""
        ...

    def record_event(self) -> Event:
        """Mark the end of what is queued now. Never blocks."""
        ...

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy of a host tensor to the device; never waits for the device.

        Shapes: any; returns the same shape and type.
        """
        ...

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy to host memory and return it; valid once a later event is done.

        Never waits for the device. Shapes: any; returns the same shape and type.
        """
        ...

    def prepare(self, step: Step) -> Executable:
        """The program of a step for its bucket; may take seconds, see `Platform.prepare`."""
        ...


class CompilationProvider(Provider[CompilationRequest, StepCompiler], Protocol):
    """Offers a compiler. Its `build` may start the device's runtime in this process."""


@runtime_checkable
class CompilingPlatform(Protocol):
    """What a platform adds that leaves the choice of its compiler to core."""

    def compile_with(self, compiler: StepCompiler) -> None:
        """Take the compiler; called once, before any tensor is placed or any step prepared.

        Until then the platform answers `supported_dtypes` and `activate` only, which then concern
        no runtime. The calling thread is activated.
        """
        ...
