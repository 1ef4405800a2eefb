"""The reference platform: torch on main memory, synchronous, no tuning."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from chiplet.api import (
    DoneEvent,
    Event,
    Executable,
    Execution,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepLimits,
)


class ReferencePlatform:
    """Torch's CPU device as it is."""

    name = "reference"
    torch_device = torch.device("cpu")
    execution = Execution.OP

    def __init__(self) -> None:
        self._num_ranks = 1
        self._num_threads: int | None = None

    def take_share(self, rank: int, num_ranks: int) -> str:
        """Threads and memory, in equal parts."""
        self._num_ranks = num_ranks
        self._num_threads = max(1, torch.get_num_threads() // num_ranks)
        return f"{self._num_threads} threads"

    def activate(self) -> None:
        """Torch's own thread count stands, unless ranks share it out."""
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)

    def memory(self) -> MemoryInfo:
        """Main memory; limits of a container are not looked at."""
        memory = psutil.virtual_memory()
        parts = self._num_ranks
        return MemoryInfo(free_bytes=memory.available // parts, total_bytes=memory.total // parts)

    def supported_dtypes(self) -> tuple[str, ...]:
        """All; float32 needs no conversion."""
        return ("float32", "bfloat16", "float16")

    def record_event(self) -> Event:
        """An event that is done already."""
        return DoneEvent()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself: it is there already."""
        return tensor

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, so that the caller may go on to overwrite the tensor."""
        return tensor.clone()

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """None: every step runs in its exact shape."""
        return ()

    def prepare(self, step: Step) -> Executable:
        """The step itself."""
        return step
