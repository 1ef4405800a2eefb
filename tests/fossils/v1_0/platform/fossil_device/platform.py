import psutil
import torch

from chiplet.api import (
    DeviceProbe,
    DoneEvent,
    Event,
    Executable,
    Execution,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepLimits,
)


class FossilPlatform:
    """The host as a device."""

    name = "fossil"
    torch_device = torch.device("cpu")
    execution = Execution.OP

    def __init__(self, device: DeviceProbe) -> None:
        self._device = device

    def activate(self) -> None:
        """Make the device current for this thread; may be called again."""

    def memory(self) -> MemoryInfo:
        """Core sizes the KV cache by what is free before and after the weights come."""
        memory = psutil.virtual_memory()
        return MemoryInfo(free_bytes=memory.available, total_bytes=memory.total)

    def supported_dtypes(self) -> tuple[str, ...]:
        """Best first: the first that fits the checkpoint is the default."""
        return ("float32", "bfloat16")

    def record_event(self) -> Event:
        """Nothing is ever queued here, so every event is done."""
        return DoneEvent()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy and return; the caller drops the source at once."""
        return tensor

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start a copy, valid once a later event is done. A copy, since core goes on to write."""
        return tensor.clone()

    def buckets(self, limits: StepLimits) -> list[ShapeBucket]:
        """None: every step runs operation by operation, in its exact shape."""
        return []

    def prepare(self, step: Step) -> Executable:
        """Never called without buckets."""
        return step
