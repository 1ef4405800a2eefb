"""Memory of the pretended device: so many bytes and no more."""

from __future__ import annotations

import threading

import torch

DEFAULT_BYTES = 4 << 30


class Block:
    """Memory of one allocation; views share it, and it is free when the last of them is gone."""

    __slots__ = ("_memory", "_pool", "storage")

    def __init__(self, memory: Memory, storage: torch.UntypedStorage, pool: Pool | None) -> None:
        self.storage = storage
        self._memory = memory
        self._pool = pool

    def __del__(self) -> None:
        """Return the memory to where it came from."""
        if self._pool is not None:
            self._pool.give_back(self.storage)
        else:
            self._memory.count(-self.storage.nbytes())


class Pool:
    """Memory of one recorded graph: what is free is used again by later work of the same graph.

    A replay runs in the order of the record, so no two users of the same bytes ever meet.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free: dict[int, list[torch.UntypedStorage]] = {}
        self._num_bytes = 0

    def take(self, num_bytes: int) -> torch.UntypedStorage:
        """Free memory of that size, or more from the device."""
        if free := self._free.get(num_bytes):
            return free.pop()
        self._memory.count(num_bytes)
        self._num_bytes += num_bytes
        return torch.UntypedStorage(num_bytes)

    def give_back(self, storage: torch.UntypedStorage) -> None:
        """Let later work have it."""
        self._free.setdefault(storage.nbytes(), []).append(storage)

    def __del__(self) -> None:
        """The graph is gone, and its memory with it."""
        self._memory.count(-self._num_bytes)


class Memory:
    """All memory of the device.

    Attributes:
        total_bytes: of the device.
        used_bytes: allocated now, or held by recorded graphs.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        # Blocks may die while one is counted: collection of garbage runs anywhere.
        self._lock = threading.RLock()

    def allocate(self, num_bytes: int, pool: Pool | None) -> Block:
        """Memory that holds anything.

        Raises:
            torch.OutOfMemoryError: there is not so much.
        """
        if pool is not None:
            return Block(self, pool.take(num_bytes), pool)
        self.count(num_bytes)
        return Block(self, torch.UntypedStorage(num_bytes), None)

    def count(self, num_bytes: int) -> None:
        """Note that so many bytes are taken, or given back if negative."""
        with self._lock:
            if num_bytes > self.total_bytes - self.used_bytes:
                raise torch.OutOfMemoryError(
                    f"fake:0 is out of memory: {num_bytes} bytes are wanted, and "
                    f"{self.total_bytes - self.used_bytes} of {self.total_bytes} are free"
                )
            self.used_bytes += num_bytes


MEMORY = Memory(DEFAULT_BYTES)
"""Memory of the only device."""
