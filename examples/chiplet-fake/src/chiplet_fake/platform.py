"""The platform: memory, types, copies, events and recorded graphs of one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chiplet.api import (
    ALL_SAMPLING,
    GREEDY,
    Executable,
    Execution,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepLimits,
    doubling,
)
from chiplet_fake.executable import RecordedStep
from chiplet_fake.hardware import DEVICE, MEMORY, STREAM

_MAX_REQUESTS, _MAX_PAGES = 2, 16
"""Of the largest recorded step. A recorded step of the reference looks at every page of its bucket
for every request, so larger ones would be slower than steps that are not recorded."""


class Mark:
    """An event: a place in the queue."""

    def __init__(self) -> None:
        self._place = STREAM.num_queued

    def is_done(self) -> bool:
        """Whether the queue has run up to here."""
        return STREAM.num_run >= self._place

    def wait(self) -> None:
        """Have the queue run up to here; raises `DeviceFault` if the device failed."""
        STREAM.wait(self._place)


class FakePlatform:
    """The only device there is."""

    name = "fake"
    torch_device = DEVICE
    execution = Execution.OP

    def activate(self) -> None:
        """Nothing to do: the device is the current one of every thread."""

    def memory(self) -> MemoryInfo:
        """What the device has, whatever the host has."""
        free_bytes = MEMORY.total_bytes - MEMORY.used_bytes
        return MemoryInfo(free_bytes=free_bytes, total_bytes=MEMORY.total_bytes)

    def supported_dtypes(self) -> tuple[str, ...]:
        """float32 first: that is what hosts compute in."""
        return ("float32", "bfloat16", "float16")

    def record_event(self) -> Mark:
        """Mark the end of the queue."""
        return Mark()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy; the queue keeps its source alive."""
        there = torch.empty_like(tensor, device=DEVICE)
        return there.copy_(tensor, non_blocking=True)

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy; until it has run, what is returned holds garbage."""
        return tensor.to("cpu", non_blocking=True)

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Small decode steps, greedy and otherwise; all others run operation by operation."""
        return [
            ShapeBucket(
                num_tokens=num_requests,
                num_requests=num_requests,
                num_decodes=num_requests,
                max_pages=min(_MAX_PAGES, limits.max_pages),
                sampling=sampling,
            )
            for sampling in (GREEDY, ALL_SAMPLING)
            for num_requests in doubling(1, min(_MAX_REQUESTS, limits.max_requests))
        ]

    def prepare(self, step: Step) -> Executable:
        """The step as a graph."""
        return RecordedStep(step)
