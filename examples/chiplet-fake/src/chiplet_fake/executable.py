"""A step recorded as a graph, to be replayed on inputs at a fixed place."""

from __future__ import annotations

import torch

from chiplet.api import HostInputs, ShapeBucket, Step, StepOutputs
from chiplet_fake.hardware import DEVICE, STREAM


class RecordedStep:
    """One bucket's step.

    Attributes:
        bucket: what it serves.
    """

    bucket: ShapeBucket

    def __init__(self, step: Step) -> None:
        """Record the step; nothing runs meanwhile."""
        self.bucket = step.bucket
        self._inputs = torch.empty(step.layout.size, dtype=torch.int32, device=DEVICE)
        inputs = step.layout.split(self._inputs, torch.float32)
        with STREAM.recording() as self._graph:
            self._outputs = step(inputs, step.state)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Queue a copy of the inputs and the graph after it."""
        self._inputs.copy_(torch.from_numpy(host.buffer), non_blocking=True)
        STREAM.replay(self._graph)
        return self._outputs
