"""Copies from the device to the host, and events that tell when they have come."""

from __future__ import annotations

import jax
import numpy as np
import torch


class _Copy:
    """One copy under way."""

    def __init__(self, array: jax.Array, dtype: torch.dtype) -> None:
        array.copy_to_host_async()
        self.host = torch.empty(array.shape, dtype=dtype, device="cpu")
        self._array: jax.Array | None = array

    def has_come(self) -> bool:
        return self._array is None or self._array.is_ready()

    def finish(self) -> None:
        """Wait for it, and fill the tensor."""
        if self._array is not None:
            np.copyto(self.host.numpy(), np.asarray(self._array))
            self._array = None


class CopiesEvent:
    """Done when some copies have come."""

    def __init__(self, copies: list[_Copy]) -> None:
        self._copies = copies

    def is_done(self) -> bool:
        """Whether the copies have come; then their tensors are filled."""
        if not all(each.has_come() for each in self._copies):
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Block until the copies have come, and fill their tensors."""
        for each in self._copies:
            each.finish()


class HostCopies:
    """Copies that no event covers yet. One thread uses it."""

    def __init__(self) -> None:
        self._started: list[_Copy] = []

    def start(self, array: jax.Array, dtype: torch.dtype) -> torch.Tensor:
        """Begin a copy; the tensor is filled when the event is done that is taken next."""
        copy = _Copy(array, dtype)
        self._started.append(copy)
        return copy.host

    def event(self) -> CopiesEvent:
        """An event for what was started since the last one."""
        copies, self._started = self._started, []
        return CopiesEvent(copies)
