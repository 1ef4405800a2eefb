"""Guards: buffers that lie between bytes which nobody may touch."""

from __future__ import annotations

from enum import StrEnum
from math import prod

import torch
from torch import Tensor

GUARD_BYTES = 4096

# Every bit set: a NaN in each floating-point type, and an absurd number in each other.
_GUARD = 255


class Placement(StrEnum):
    """How inputs lie in memory."""

    STACKED = "stacked"
    """Views of one tensor, as layers make queries, keys and values."""
    CONTIGUOUS = "contiguous"
    """A tensor each."""
    MISALIGNED = "misaligned"
    """A tensor each, one element off an aligned address."""
    WIDE = "wide"
    """A tensor each, whose rows are further apart than they are long; NaN lies between them."""


class GuardedBuffer:
    """Room for a tensor with guards on both sides, all of it NaN to begin with.

    Attributes:
        tensor: the room; what is written there is no concern of the guards.
        whole: room and guards, as bytes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        shift_bytes: int = 0,
    ) -> None:
        """Allocate.

        Args:
            shape: of the tensor.
            dtype: of the tensor.
            device: where it lies.
            shift_bytes: how far the tensor is moved from an aligned address.
        """
        size = prod(shape) * dtype.itemsize
        # Whole elements, whatever their size: the buffer is seen as one run of them below.
        total = 2 * GUARD_BYTES + -(-(size + shift_bytes) // GUARD_BYTES) * GUARD_BYTES
        self.whole = torch.full((total,), _GUARD, dtype=torch.uint8, device=device)
        first = GUARD_BYTES + shift_bytes
        self._inside = slice(first, first + size)
        start = first // dtype.itemsize
        elements = self.whole.view(dtype)[start : start + prod(shape)]
        self.tensor = elements.view(shape)

    def check(self, what: str) -> None:
        """Look at the guards.

        Raises:
            AssertionError: something was written outside the tensor.
        """
        ends = (self.whole[: self._inside.start], self.whole[self._inside.stop :])
        # One comparison for both: on an accelerator the host waits for it.
        if not bool((torch.cat(ends) == _GUARD).all()):
            side = "before" if bool((ends[0] != _GUARD).any()) else "behind"
            raise AssertionError(f"{what}: bytes {side} the buffer were written")


def place(
    tensor: Tensor, placement: Placement, device: torch.device
) -> tuple[Tensor, GuardedBuffer]:
    """A copy of a tensor on a device, placed as told between guards, and its buffer."""
    width = tensor.shape[-1]
    gap = 8 if placement is Placement.WIDE else 0
    shift_bytes = tensor.itemsize if placement is Placement.MISALIGNED else 0
    shape = (*tensor.shape[:-1], width + gap)
    buffer = GuardedBuffer(shape, tensor.dtype, device, shift_bytes=shift_bytes)
    view = buffer.tensor[..., :width]
    view.copy_(tensor)
    return view, buffer
