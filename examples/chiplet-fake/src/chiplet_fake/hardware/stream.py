"""The device's queue: work runs in order, and as late as it may.

Nothing runs until somebody waits. What a real device does by chance, this one always does: copies
read their source late, and results on the host hold garbage until an event is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from chiplet_fake.hardware.memory import MEMORY, Pool

Task = Callable[[], object]


class DeviceFault(RuntimeError):
    """The device failed; all that it is asked afterwards fails too, until its process ends."""


class Graph:
    """Recorded work, with the memory that it uses."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.pool = Pool(MEMORY)


class _Recording(threading.local):
    """The graph that the calling thread records."""

    graph: Graph | None = None


class Stream:
    """A queue of work. One thread may record while another launches.

    Attributes:
        num_queued: tasks ever queued.
        num_run: of these, how many have run.
        num_replays: graphs queued.
    """

    def __init__(self) -> None:
        self.num_queued = 0
        self.num_run = 0
        self.num_replays = 0
        self._tasks: list[Task] = []
        self._fault: DeviceFault | None = None
        self._recording = _Recording()
        self._lock = threading.RLock()

    @property
    def pool(self) -> Pool | None:
        """Where the calling thread's allocations come from, if it records."""
        return self._recording.graph.pool if self._recording.graph is not None else None

    def queue(self, task: Task) -> None:
        """Have a task run after all that is queued, or record it."""
        self._check()
        if self._recording.graph is not None:
            self._recording.graph.tasks.append(task)
            return
        with self._lock:
            self._tasks.append(task)
            self.num_queued += 1

    def replay(self, graph: Graph) -> None:
        """Queue all of a graph's work."""
        self._check()
        with self._lock:
            self._tasks += graph.tasks
            self.num_queued += len(graph.tasks)
            self.num_replays += 1

    def wait(self, until: int | None = None) -> None:
        """Run what is queued, or its first `until` tasks of all time.

        Raises:
            DeviceFault: a task failed, now or earlier.
            RuntimeError: the calling thread records.
        """
        if self._recording.graph is not None:
            raise RuntimeError("fake:0 cannot be waited for while a graph is recorded")
        with self._lock, torch.inference_mode():
            end = self.num_queued if until is None else until
            while self.num_run < end and self._fault is None:
                self._run_next()
        self._check()

    @contextmanager
    def recording(self) -> Generator[Graph]:
        """Record what the calling thread queues, instead of running it."""
        graph = self._recording.graph = Graph()
        try:
            yield graph
        finally:
            self._recording.graph = None

    def _run_next(self) -> None:
        task = self._tasks.pop(0)
        self.num_run += 1
        try:
            task()
        except Exception as error:
            self._tasks.clear()
            self._fault = DeviceFault(f"fake:0 failed: {error}")

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault


STREAM = Stream()
"""The queue of the only device."""
