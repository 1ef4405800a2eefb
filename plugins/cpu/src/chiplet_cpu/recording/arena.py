"""Memory of recorded steps: given out while a step is recorded, at the same address ever after."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_CHUNK_BYTES = 8 << 20


class Arena:
    """Gives memory to the tensors of a recording and takes it back when they are dropped.

    A step is repeated in the order in which it was recorded, so that what was free then is free
    again. Steps run one at a time and leave nothing for the next, so that all of them share it.
    """

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._free: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._chunk = 0
        self._used_bytes = 0
        self._recording = 0

    @property
    def size_bytes(self) -> int:
        """All memory taken from the system."""
        return sum(each.nbytes for each in self._chunks)

    def begin(self) -> None:
        """Start another recording, with all memory free."""
        self._free.clear()
        self._chunk = self._used_bytes = 0
        self._recording += 1

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor; whole numbers are zero, so that they may be used as indices."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        rounded = -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        free = self._free[rounded]
        memory = free.pop() if free else self._cut(rounded)
        if not dtype.is_floating_point:
            memory.fill(0)
        # The tensor's storage holds the array `owner`; when the last view is gone, so is it.
        owner = memory[:size_bytes]
        weakref.finalize(owner, self._take_back, memory, self._recording).atexit = False
        return torch.from_numpy(owner).view(dtype).view(tuple(shape))

    def _take_back(self, memory: np.ndarray, recording: int) -> None:
        if recording == self._recording:
            self._free[memory.nbytes].append(memory)

    def _cut(self, size_bytes: int) -> np.ndarray:
        while True:
            if self._chunk == len(self._chunks):
                wanted = max(size_bytes + _ALIGNMENT, _CHUNK_BYTES)
                self._chunks.append(np.zeros(wanted, dtype=np.uint8))
            chunk = self._chunks[self._chunk]
            start = self._used_bytes or -chunk.ctypes.data % _ALIGNMENT
            if start + size_bytes <= chunk.nbytes:
                self._used_bytes = start + size_bytes
                return chunk[start : start + size_bytes]
            self._chunk, self._used_bytes = self._chunk + 1, 0
