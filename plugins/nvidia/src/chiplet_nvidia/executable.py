"""Recorded steps: the work of a bucket as a CUDA graph, replayed on inputs at a fixed address."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chiplet.api import HostInputs, Logprobs, Step, StepOutputs

_IN_FLIGHT = 2


class PinnedRing:
    """Pinned buffers that take turns: one is filled while the other may still be copied.

    All recorded steps share them, because steps are launched one after another.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._arrays: list[NDArray[np.int32]] = []
        self._sent = [torch.cuda.Event() for _ in range(_IN_FLIGHT)]
        self._turn = 0

    def reserve(self, size: int) -> None:
        """Have room for `size` elements of 32 bits."""
        if self._buffers and len(self._buffers[0]) >= size:
            return
        # What is still being copied is kept by torch's allocator until it has arrived.
        self._buffers = [
            torch.empty(size, dtype=torch.int32, pin_memory=True) for _ in range(_IN_FLIGHT)
        ]
        self._arrays = [buffer.numpy() for buffer in self._buffers]

    def send(self, source: NDArray[np.int32], target: Tensor) -> None:
        """Start the copy of an array to the device. Mutates: `target`, in the stream's order."""
        turn, size = self._turn, len(source)
        self._turn = (turn + 1) % _IN_FLIGHT
        # Long done: with two steps in flight, the one before the last has been waited for.
        self._sent[turn].synchronize()
        self._arrays[turn][:size] = source
        target.copy_(self._buffers[turn][:size], non_blocking=True)
        self._sent[turn].record()


class Recorder:
    """Records work as graphs that share one pool of memory, since they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # NOTE: torch refuses a pool whose last graph is gone, so that one graph always stays.
        self._latest: torch.cuda.CUDAGraph | None = None

    def warm_up(self, work: Callable[[], StepOutputs]) -> StepOutputs:
        """Do the work once, after what is queued and before what comes: kernels get compiled."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = work()
        current.wait_stream(self._stream)
        return outputs

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The work as a graph; nothing runs.

        Raises:
            RuntimeError: it does something that cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Another thread may wait for a step meanwhile: only this one is restricted.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        self._latest = graph
        return graph


class RecordedStep:
    """A step as a graph; see `chiplet.api.Executable`."""

    def __init__(self, step: Step, recorder: Recorder, ring: PinnedRing) -> None:
        """Warm up on padding, then record."""
        self.bucket = step.bucket
        self._ring = ring
        ring.reserve(step.layout.size)
        self._inputs = torch.from_numpy(step.padding().buffer).to(recorder.device)
        views = step.layout.split(self._inputs, torch.float32)
        made = recorder.warm_up(lambda: step(views, step.state))
        # Outside the graphs' pool: the next replay of another graph leaves them alone.
        self._outputs = _like(made)

        def work() -> None:
            results = step(views, step.state)
            for target, source in zip(_each(self._outputs), _each(results), strict=True):
                target.copy_(source)

        self._graph = recorder.record(work)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Send the inputs and replay."""
        self._ring.send(host.buffer, self._inputs)
        self._graph.replay()
        return self._outputs


def _like(outputs: StepOutputs) -> StepOutputs:
    logprobs = outputs.logprobs
    return StepOutputs(
        torch.empty_like(outputs.token_ids),
        None if logprobs is None else Logprobs(*map(torch.empty_like, logprobs)),
    )


def _each(outputs: StepOutputs) -> Iterator[Tensor]:
    yield outputs.token_ids
    yield from outputs.logprobs or ()
