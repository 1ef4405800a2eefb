"""Memory of recorded steps: given out while a step is recorded, at the same address ever after."""

from __future__ import annotations

import math
import mmap
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
        """A contiguous tensor of any values: nothing is computed while a step is recorded."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        rounded = -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        free = self._free[rounded]
        memory = free.pop() if free else self._cut(rounded)
        # The tensor's storage holds the array `owner`; when the last view is gone, so is it.
        owner = memory[:size_bytes]
        weakref.finalize(owner, self._take_back, memory, self._recording).atexit = False
        return torch.from_numpy(owner).view(dtype).view(tuple(shape))

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape, strides and type, whatever its values and its device."""
        extent = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        flat = self.empty((extent + 1 if tensor.numel() else 0,), tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())

    def lasting(self, tensor: Tensor) -> Tensor:
        """The same memory, not held: it is given again when the tensor itself is gone.

        For those who use it only while steps are repeated. Tensors from elsewhere are kept alive.
        """
        if tensor.layout is not torch.strided:  # packed by oneDNN, without an address
            return tensor
        address = tensor.data_ptr()
        for chunk in map(torch.from_numpy, self._chunks):
            offset_bytes = address - chunk.data_ptr()
            if 0 <= offset_bytes < chunk.nbytes:
                offset = offset_bytes // tensor.itemsize
                alias = torch.empty(0, dtype=tensor.dtype, device="cpu")
                return alias.set_(chunk.untyped_storage(), offset, tensor.shape, tensor.stride())
        return tensor

    def _take_back(self, memory: np.ndarray, recording: int) -> None:
        if recording == self._recording:
            self._free[memory.nbytes].append(memory)

    def _cut(self, size_bytes: int) -> np.ndarray:
        while True:
            if self._chunk == len(self._chunks):
                wanted = max(size_bytes + _ALIGNMENT, _CHUNK_BYTES)
                # A mapping of its own: in a thread's heap the C library would write the zeros.
                pages = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._chunks.append(np.frombuffer(pages, dtype=np.uint8))
            chunk = self._chunks[self._chunk]
            start = self._used_bytes or -chunk.ctypes.data % _ALIGNMENT
            if start + size_bytes <= chunk.nbytes:
                self._used_bytes = start + size_bytes
                return chunk[start : start + size_bytes]
            self._chunk, self._used_bytes = self._chunk + 1, 0
