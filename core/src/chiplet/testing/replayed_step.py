"""A step that runs on fixed buffers, as a recorded graph does, without an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from chiplet.api import ALL_SAMPLING as ALL
from chiplet.api import HostInputs, Logprobs, ShapeBucket, Step, StepLimits, StepOutputs


class ReplayedStep:
    """Records a step's tensor operations once and replays them on fixed buffers.

    A step that reads a value back while it is recorded fails there. One whose operations depend
    on lengths gives wrong tokens when it is replayed with others.

    Attributes:
        bucket: what it serves.
        num_launches: how often it ran.
    """

    def __init__(self, step: Step) -> None:
        """Record the step on inputs that are padding altogether."""
        self.bucket = step.bucket
        self.num_launches = 0
        self._state = step.state
        self._addresses = self._state_addresses()
        self._inputs = torch.from_numpy(step.padding().buffer.copy())
        layout = step.layout

        def run(buffer: torch.Tensor) -> Any:
            outputs = step(layout.split(buffer, torch.float32), step.state)
            return outputs.token_ids, *(outputs.logprobs or ())

        self._run: Callable[[torch.Tensor], Any] = make_fx(run)(self._inputs)

    def launch(self, host: HostInputs) -> StepOutputs:
        """Copy the inputs into their place and replay."""
        self.num_launches += 1
        self._inputs.copy_(torch.from_numpy(host.buffer))
        token_ids, *logprobs = self._run(self._inputs)
        assert self._addresses == self._state_addresses(), "a tensor of the state has moved"
        return StepOutputs(token_ids, Logprobs(*logprobs) if logprobs else None)

    def _state_addresses(self) -> list[int]:
        kv, *tables = self._state
        return [each.data_ptr() for each in (*kv, *tables)]


def few_buckets(limits: StepLimits) -> Sequence[ShapeBucket]:
    """One decode bucket and one for every step: nearly all steps have padding."""
    decode = ShapeBucket(
        num_tokens=limits.max_requests,
        num_requests=limits.max_requests,
        num_decodes=limits.max_requests,
        max_pages=limits.max_pages,
        sampling=ALL,
    )
    return decode, limits.largest_step
