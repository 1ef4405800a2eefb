"""RecordedStep: a step of one bucket, repeated on fixed memory."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from chiplet.api import HostInputs, Logprobs, ShapeBucket, Step, StepOutputs
from chiplet_cpu import native
from chiplet_cpu.recording.arena import Arena
from chiplet_cpu.recording.huge_pages import MANY_REQUESTS, HugePages
from chiplet_cpu.recording.recorder import Recorder


class RecordedStep:
    """An executable that copies its inputs into their place and repeats what was recorded.

    Attributes:
        bucket: what it serves.
        torch_operations: names of torch's operations that it repeats beside kernels.
    """

    def __init__(self, step: Step, arena: Arena, huge_pages: HugePages) -> None:
        """Record the step on padding. Kernels are not run.

        Raises:
            CannotRecord: an operation cannot be repeated; the text names it.
        """
        self.bucket: ShapeBucket = step.bucket
        self._kv = step.state.kv
        self._huge_pages = huge_pages
        self._inputs = torch.from_numpy(step.padding().buffer.copy())
        inputs = step.layout.split(self._inputs, torch.float32)
        recorder = Recorder(arena)
        try:
            with recorder:
                outputs = step(inputs, step.state)
        finally:
            weakref.finalize(self, native.library.tape_drop, recorder.tape)
        self._outputs: tuple[Tensor, ...] = (outputs.token_ids, *(outputs.logprobs or ()))
        self._entries = tuple(recorder.entries)
        self.torch_operations = tuple(recorder.torch_operations)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Run the step; it is done when this returns."""
        if self.bucket.num_requests >= MANY_REQUESTS:
            self._huge_pages.ask(self._kv)
        self._inputs.copy_(torch.from_numpy(host.buffer))
        for entry in self._entries:
            entry()
        # The memory belongs to all recorded steps.
        token_ids, *logprobs = (each.clone() for each in self._outputs)
        return StepOutputs(token_ids, Logprobs(*logprobs) if logprobs else None)
