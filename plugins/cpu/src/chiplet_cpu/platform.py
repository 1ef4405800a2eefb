"""The CPU platform: main memory, recorded steps one ahead, a thread for each core."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

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
from chiplet_cpu import native
from chiplet_cpu.cgroup import cpu_quota
from chiplet_cpu.host import memory_info
from chiplet_cpu.placement import MemoryPolicy, Placement, PlacementOptions, apply_to_thread, place
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.buckets import decode_buckets
from chiplet_cpu.recording.executable import RecordedStep
from chiplet_cpu.recording.huge_pages import HugePages
from chiplet_cpu.recording.lane import Lane
from chiplet_cpu.thread_trial import faster
from chiplet_cpu.topology import read_nodes

_log = logging.getLogger(__name__)

_FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


class CpuPlatform:
    """The host's processors through torch."""

    name = "cpu"
    torch_device = torch.device("cpu")
    execution = Execution.OP

    def __init__(self, device: DeviceProbe, options: PlacementOptions | None = None) -> None:
        self._options = options or PlacementOptions()
        self._placement: Placement | None = None
        self._arena = Arena()
        self._huge_pages = HugePages()
        self._lane = Lane()
        self._instruction_sets = frozenset(device.facts.get("isa", "").split())

    def take_share(self, rank: int, num_ranks: int) -> str:
        """Cores of a node for each rank, or an equal part of the cores; see `placement`."""
        self._options = replace(self._options, rank=rank, num_ranks=num_ranks)
        self._placement = self._place()
        return self._placement.reason

    def activate(self) -> None:
        """Put threads and memory where they are best off, the first time; see `placement`."""
        if self._placement is None:
            self._placement = self._place()
        apply_to_thread(self._placement)
        torch.set_num_threads(self._placement.threads)
        native.set_threads(self._placement.threads, self._placement.pins)

    def _place(self) -> Placement:
        if not native.is_available():
            _log.warning(
                "Torch's operations serve on the CPU: %s. %s",
                native.explanation(),
                native.remedy(),
            )
        placement = place(read_nodes(), cpu_quota(), self._options, faster)
        _log.info("CPU: %s", placement.reason)
        return placement

    def memory(self) -> MemoryInfo:
        """Main memory, or what the container or the node leaves of it."""
        memory, placement = memory_info(), self._placement
        parts = self._options.num_ranks
        free_bytes = memory.free_bytes // parts
        if placement is not None and placement.policy is MemoryPolicy.BIND:
            (node,) = (each for each in read_nodes() if each.index in placement.nodes)
            if node.free_bytes:
                free_bytes = min(free_bytes, node.free_bytes // placement.memory_parts)
        return MemoryInfo(free_bytes=free_bytes, total_bytes=memory.total_bytes // parts)

    def supported_dtypes(self) -> tuple[str, ...]:
        """bfloat16 first where the processor computes in it."""
        if self._instruction_sets & _FAST_BFLOAT16:
            return ("bfloat16", "float32", "float16")
        return ("float32", "bfloat16", "float16")

    def record_event(self) -> Event:
        """The end of the steps that run behind Python's back; all else is done at once."""
        return self._lane.event()

    def to_device_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, once no step runs: what steps use may be written next."""
        self._lane.drain()
        return tensor

    def to_host_async(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, so that the caller may go on to overwrite the tensor."""
        if self._lane.gives(tensor):
            return tensor  # in memory of its own
        self._lane.drain()
        return tensor.clone()

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        """Batches of one token each, where there are kernels to put on a tape."""
        return decode_buckets(limits) if native.is_available() else ()

    def prepare(self, step: Step) -> Executable:
        """The step, recorded, after those that still run."""
        self._lane.drain()
        return RecordedStep(step, self._arena, self._huge_pages, self._lane)
