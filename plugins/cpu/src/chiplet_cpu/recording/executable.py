"""RecordedStep: a step of one bucket, repeated on fixed memory while Python goes on."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from chiplet.api import HostInputs, Logprobs, ShapeBucket, Step, StepOutputs
from chiplet_cpu import native
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.huge_pages import MANY_REQUESTS, HugePages
from chiplet_cpu.recording.lane import Lane
from chiplet_cpu.recording.recorder import Recorder


class RecordedStep:
    """An executable that copies its inputs into their place and repeats what was recorded.

    Attributes:
        bucket: what it serves.
        torch_operations: names of torch's operations that it repeats beside kernels.
    """

    def __init__(self, step: Step, arena: Arena, huge_pages: HugePages, lane: Lane) -> None:
        """Record the step on padding. Kernels are not run.

        Raises:
            CannotRecord: an operation cannot be repeated; the text names it.
        """
        self.bucket: ShapeBucket = step.bucket
        self._step = step  # which knows all that is read and written, as long as it may run
        self._huge_pages = huge_pages
        self._lane = lane
        self._inputs = torch.from_numpy(step.padding().buffer.copy())
        inputs = step.layout.split(self._inputs, torch.float32)
        recorder = Recorder(arena)
        try:
            with recorder:
                outputs = step(inputs, step.state)
        finally:
            weakref.finalize(self, _drop, recorder.tape)
        self._tape = recorder.tape
        self._outputs: tuple[Tensor, ...] = (outputs.token_ids, *(outputs.logprobs or ()))
        self._entries = tuple(recorder.entries)
        self.torch_operations = tuple(recorder.torch_operations)
        # Operations of torch need Python. Log-probabilities are looked at where they lie.
        self._is_native = not self.torch_operations and len(self._outputs) == 1

    def launch(self, host: HostInputs) -> StepOutputs:
        """Start the step, or run it where some of it needs Python."""
        if self.bucket.num_requests >= MANY_REQUESTS:
            self._huge_pages.ask(self._step.state.kv)
        if self._is_native:
            (result,) = self._outputs
            out = torch.empty_like(result)
            if self._lane.launch(self._tape, self._inputs, host.buffer, result, out, self):
                return StepOutputs(out, None)
        self._lane.drain()
        self._inputs.copy_(torch.from_numpy(host.buffer))
        for entry in self._entries:
            entry()
        # The memory belongs to all recorded steps.
        token_ids, *logprobs = (each.clone() for each in self._outputs)
        return StepOutputs(token_ids, Logprobs(*logprobs) if logprobs else None)


def _drop(tape: int) -> None:
    native.library.lane_wait_for_all()
    native.library.tape_drop(tape)
