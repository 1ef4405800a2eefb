"""The NVIDIA platform: one GPU through torch, with copies that wait for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from chiplet.api import (
    DeviceProbe,
    Event,
    Executable,
    Execution,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepLimits,
)
from chiplet_nvidia.buckets import recorded_buckets
from chiplet_nvidia.executable import PinnedRing, RecordedStep, Recorder

_CHECK_THREADS = 8
"""Groups of comparisons that take long; compiling holds the interpreter for two fifths of its time,
so that more would not help."""


class StreamEvent:
    """A mark in the current stream."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_done(self) -> bool:
        """Whether the stream has passed the mark."""
        return self._event.query()

    def wait(self) -> None:
        """Block until the stream has passed the mark."""
        self._event.synchronize()


class CudaPlatform:
    """One GPU."""

    name = "cuda"
    execution = Execution.OP
    num_check_threads = _CHECK_THREADS

    def __init__(self, device: DeviceProbe) -> None:
        self.torch_device = torch.device("cuda", device.index)
        self._has_bfloat16 = int(device.facts["capability"].partition(".")[0]) >= 8

    def activate(self) -> None:
        """Make the GPU the thread's current one; float32 products stay float32."""
        torch.cuda.set_device(self.torch_device)
        torch.backends.cuda.matmul.allow_tf32 = False

    def memory(self) -> MemoryInfo:
        """Free memory, what torch has cached and does not use included."""
        free, total = torch.cuda.mem_get_info(self.torch_device)
        cached = torch.cuda.memory_reserved(self.torch_device)
        unused = cached - torch.cuda.memory_allocated(self.torch_device)
        return MemoryInfo(free_bytes=free + unused, total_bytes=total)

    def supported_dtypes(self) -> tuple[str, ...]:
        """bfloat16 first, where the GPU computes in it."""
        if self._has_bfloat16:
            return ("bfloat16", "float16", "float32")
        return ("float16", "float32")

    def record_event(self) -> Event:
        """Mark the end of the current stream."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.torch_device))
        return StreamEvent(event)

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy from pinned memory, which torch's allocator keeps until the copy has run."""
        return tensor.pin_memory().to(self.torch_device, non_blocking=True)

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy into pinned memory."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Decode steps and small mixtures; all others run in their exact shape."""
        return recorded_buckets(limits)

    def prepare(self, step: Step) -> Executable:
        """The step as a CUDA graph."""
        return RecordedStep(step, self._recorder, self._ring)

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self.torch_device)

    @cached_property
    def _ring(self) -> PinnedRing:
        return PinnedRing()
