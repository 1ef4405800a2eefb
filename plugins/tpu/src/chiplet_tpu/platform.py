"""The TPU platform: whole steps in static shapes, by whichever compiler was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from chiplet.api import (
    DeviceProbe,
    Event,
    Executable,
    Execution,
    MemoryInfo,
    ShapeBucket,
    Step,
    StepCompiler,
    StepLimits,
)
from chiplet_tpu.buckets import choose_buckets
from chiplet_tpu.chips import is_emulated


@runtime_checkable
class SpanningCompiler(Protocol):
    """What a compiler has besides, if one program of it can span several devices."""

    def span(self, num_ranks: int) -> None:
        """See `chiplet.api.SpmdPlatform`."""
        ...

    def join_shards(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `chiplet.api.SpmdPlatform`."""
        ...


class TpuPlatform:
    """TPU devices of one host, or the host's processor in their stead."""

    name = "tpu"
    execution = Execution.STEP

    def __init__(self, device: DeviceProbe) -> None:
        self._is_emulated = is_emulated(device)
        self._compiler: StepCompiler | None = None

    @property
    def compiler(self) -> StepCompiler:
        """Who was chosen to compile."""
        assert self._compiler is not None, "core chooses the compiler before it places a tensor"
        return self._compiler

    @property
    def torch_device(self) -> torch.device:
        """Where tensors go: a word of the compiler's library."""
        return self.compiler.torch_device

    def compile_with(self, compiler: StepCompiler) -> None:
        """Take the compiler, which sees this thread from now on."""
        self._compiler = compiler
        compiler.activate()

    def activate(self) -> None:
        """Let the compiler see the calling thread; nothing before there is one."""
        if self._compiler is not None:
            self._compiler.activate()

    def memory(self) -> MemoryInfo:
        """Memory of one device."""
        return self.compiler.memory()

    def supported_dtypes(self) -> tuple[str, ...]:
        """bfloat16, which the matrix units multiply; float32 takes six passes of it. No float16."""
        return ("bfloat16", "float32")

    def record_event(self) -> Event:
        """The copies to the host that were started before."""
        return self.compiler.record_event()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        return self.compiler.to_device_async(tensor)

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, filled when a later event is done."""
        return self.compiler.to_host_async(tensor)

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Powers of two of tokens and requests; see `chiplet_tpu.buckets`."""
        return choose_buckets(limits, is_emulated=self._is_emulated)

    def prepare(self, step: Step) -> Executable:
        """The compiled step."""
        return self.compiler.prepare(step)

    def span(self, num_ranks: int) -> None:
        """Take so many devices for one program."""
        self._spanning(num_ranks).span(num_ranks)

    def join_shards(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor that has another value on each device."""
        return self._spanning(len(shards)).join_shards(shards)

    def _spanning(self, num_ranks: int) -> SpanningCompiler:
        if not isinstance(self._compiler, SpanningCompiler):
            raise ValueError(f"the compiler chosen serves one device, not {num_ranks}")
        return self._compiler
