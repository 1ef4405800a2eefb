"""The CPU platform: main memory, synchronous execution, as many threads as cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

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
from chiplet_cpu import native
from chiplet_cpu.host import memory_info, usable_cores
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.buckets import decode_buckets
from chiplet_cpu.recording.executable import RecordedStep
from chiplet_cpu.recording.huge_pages import HugePages

_FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


class CpuPlatform:
    """The host's processors through torch."""

    name = "cpu"
    torch_device = torch.device("cpu")
    execution = Execution.OP

    def __init__(self, device: DeviceProbe) -> None:
        self._arena = Arena()
        self._huge_pages = HugePages()
        self._instruction_sets = frozenset(device.facts.get("isa", "").split())

    def activate(self) -> None:
        """One thread per usable core, as more would fight over them; or what the user set."""
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(usable_cores())
        native.set_threads(torch.get_num_threads())

    def memory(self) -> MemoryInfo:
        """Main memory, or what the container leaves of it."""
        return memory_info()

    def supported_dtypes(self) -> tuple[str, ...]:
        """bfloat16 first where the processor computes in it."""
        if self._instruction_sets & _FAST_BFLOAT16:
            return ("bfloat16", "float32", "float16")
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
        """Batches of one token each, where there are kernels to put on a tape."""
        return decode_buckets(limits) if native.is_available() else ()

    def prepare(self, step: Step) -> Executable:
        """The step, recorded."""
        return RecordedStep(step, self._arena, self._huge_pages)
