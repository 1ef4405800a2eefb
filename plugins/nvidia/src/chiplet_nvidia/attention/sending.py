"""How plans made on the host reach FlashInfer's kernels, and how tensors must lie for them."""

from __future__ import annotations

import torch
from torch import Tensor

from chiplet.api import Event, Platform

_IN_FLIGHT = 3
_ALIGNMENT_BYTES = 16


class SendBuffers:
    """Pinned buffers that take turns: FlashInfer copies a plan from one while the next is made."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._is_pinned = platform.torch_device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * _IN_FLIGHT
        self._sent: list[Event | None] = [None] * _IN_FLIGHT
        self._turn = 0

    def next(self, size: int) -> Tensor:
        """A buffer of at least `size` bytes from which nothing is being copied any more."""
        self._turn = (self._turn + 1) % _IN_FLIGHT
        sent = self._sent[self._turn]
        if sent is not None:
            sent.wait()  # long done: with two steps in flight, the one before has been waited for
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = torch.empty(
                size, dtype=torch.uint8, pin_memory=self._is_pinned
            )
        return self._buffers[self._turn]

    def mark_sent(self) -> None:
        """Note that the copy from the last buffer has been queued."""
        self._sent[self._turn] = self._platform.record_event()


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy that the copy engine can read: at multiples of 16 bytes."""
    size = x.element_size()
    if x.data_ptr() % _ALIGNMENT_BYTES or any(
        stride * size % _ALIGNMENT_BYTES for stride in x.stride()[:-1]
    ):
        return x.clone(memory_format=torch.contiguous_format)
    return x
