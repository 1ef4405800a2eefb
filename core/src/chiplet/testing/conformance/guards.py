"""Guards: buffers that lie between bytes which nobody may touch."""

from __future__ import annotations

from math import prod

import torch

GUARD_BYTES = 4096

# Every bit set: a NaN in each floating-point type, and an absurd number in each other.
_GUARD = 255


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
        for side, guard in (
            ("before", self.whole[: self._inside.start]),
            ("behind", self.whole[self._inside.stop :]),
        ):
            assert bool((guard == _GUARD).all()), f"{what}: bytes {side} the buffer were written"
