"""Lane: recorded steps that run while Python goes on."""

from __future__ import annotations

from collections import deque

import numpy as np
from torch import Tensor

from chiplet.api import DoneEvent, Event
from chiplet_cpu import native

_DONE = DoneEvent()


class Lane:
    """Runs steps one after another, on a thread that computes anyway.

    Whoever waits takes part. All else that touches what steps use must come after `drain`: there
    is no queue that torch's operations would wait in.
    """

    def __init__(self) -> None:
        # Number, result, and whatever the step reads and writes, of steps that may still run.
        self._running: deque[tuple[int, Tensor, object]] = deque()

    def launch(
        self,
        tape: int,
        inputs: Tensor,
        values: np.ndarray,
        result: Tensor,
        out: Tensor,
        owner: object,
    ) -> bool:
        """Have a step run after those before it; false, and nothing happens, with one thread.

        Args:
            tape: all that the step does.
            inputs: of the step, contiguous.
            values: what they shall be, contiguous; copied at once.
            result: of the step, contiguous.
            out: as large; where the result goes.
            owner: kept until the step has run.
        """
        number = native.library.lane_launch(
            tape,
            inputs.data_ptr(),
            values.ctypes.data,
            values.nbytes,
            result.data_ptr(),
            out.data_ptr(),
            out.nbytes,
        )
        if not number:
            return False
        self._forget()
        self._running.append((number, out, (owner, inputs)))
        return True

    def gives(self, tensor: Tensor) -> bool:
        """Whether it is the result of a step that may still run."""
        return any(out is tensor for _, out, _ in self._running)

    def event(self) -> Event:
        """The end of the last step launched."""
        self._forget()
        return _StepEvent(self._running[-1][0]) if self._running else _DONE

    def drain(self) -> None:
        """Wait until no step runs."""
        if self._running:
            native.library.lane_wait(self._running[-1][0])
            self._running.clear()

    def _forget(self) -> None:
        num_done = native.library.lane_num_done() if self._running else 0
        while self._running and self._running[0][0] <= num_done:
            self._running.popleft()


class _StepEvent:
    """The end of a step and of all before it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def is_done(self) -> bool:
        """Whether it has come."""
        return native.library.lane_num_done() >= self._number

    def wait(self) -> None:
        """Compute with the others until it has come."""
        native.library.lane_wait(self._number)
