"""WeightMemory: where packed weights lie, in huge pages of memory where the system grants them.

A product with few rows reads each weight once. The processor's own prefetching stops at the end
of a page of memory, and each new page costs a walk through tables: with huge pages a core reads
half as much again per second (benchmarks/cpu_notes.md).
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from threading import Lock

import numpy as np
import torch
from torch import Tensor

HUGE_BYTES = 2 << 20
_ALIGNMENT = 64
_CHUNK_BYTES = 64 << 20
"""Address space taken at a time. What is not written to takes no memory."""

Span = tuple[int, int, int]
"""Bytes `[begin, end)` of a chunk, and the chunk's number."""


class WeightMemory:
    """Gives memory for good, one tensor after another, and takes back what is dropped."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._free: list[Span] = []
        # Appended to by whatever thread drops a tensor, even in the middle of `empty`.
        self._returned: deque[Span] = deque()
        self._lock = Lock()

    def empty(self, num_rows: int, row_bytes: int) -> Tensor:
        """`[num_rows, row_bytes] uint8`, of any values, aligned for vectors."""
        wanted = -(-num_rows * row_bytes // _ALIGNMENT) * _ALIGNMENT
        if wanted == 0:
            return torch.empty(num_rows, row_bytes, dtype=torch.uint8)
        with self._lock:
            begin, end, number = self._take(wanted)
            memory = self._chunks[number][begin : begin + num_rows * row_bytes]
        # The tensor's storage holds the array; when the last view is gone, so is it.
        weakref.finalize(memory, self._returned.append, (begin, end, number)).atexit = False
        return torch.from_numpy(memory).view(num_rows, row_bytes)

    def keep(self, rows: Tensor) -> Tensor:
        """A copy of `[num_rows, row_bytes] uint8`."""
        return self.empty(*rows.shape).copy_(rows)

    def _take(self, wanted: int) -> Span:
        """The first free span that is large enough, cut to its size."""
        if self._returned:
            returned = [self._returned.popleft() for _ in range(len(self._returned))]
            self._free = _joined([*self._free, *returned])
        for index, (begin, end, number) in enumerate(self._free):
            if end - begin >= wanted:
                self._free[index] = (begin + wanted, end, number)
                return begin, begin + wanted, number
        self._free.append((wanted, self._add_chunk(wanted), len(self._chunks) - 1))
        return 0, wanted, len(self._chunks) - 1

    def _add_chunk(self, wanted: int) -> int:
        """Take more from the system; its size."""
        size = -(-max(wanted, _CHUNK_BYTES) // HUGE_BYTES) * HUGE_BYTES
        chunk = _new_pages(size + HUGE_BYTES)
        start = -chunk.ctypes.data % HUGE_BYTES
        self._chunks.append(chunk[start : start + size])
        return size


def _new_pages(size: int) -> np.ndarray:
    """`[size] uint8` of memory that nobody has touched."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, dtype=np.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: `chiplet doctor` says so
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8)


def _joined(spans: list[Span]) -> list[Span]:
    """Spans in order, neighbours made one."""
    joined: list[Span] = []
    for begin, end, number in sorted(spans, key=lambda span: (span[2], span[0])):
        if joined and joined[-1][2] == number and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end, number)
        elif begin < end:
            joined.append((begin, end, number))
    return joined
