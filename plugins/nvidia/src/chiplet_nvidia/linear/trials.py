"""Trials: of several ways to do the same work, the fastest while it is done in earnest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from typing import NamedTuple, Protocol, Self, TypeVar

T = TypeVar("T")

SAMPLES = 4
"""Calls of each way in a round."""

FIRST_REST, LONGEST_REST = 128, 8192
"""Calls between rounds, at first and at most; each pause is twice the one before."""

MIN_GAIN = 0.99
"""Another way than the first is taken where it needs at most this share of its time."""


class TimedEvent(Protocol):
    """A mark in a stream with its time, as `torch.cuda.Event` is one."""

    def record(self) -> None:
        """Set the mark."""
        ...

    def query(self) -> bool:
        """Whether the stream has passed it."""
        ...

    def elapsed_time(self, end_event: Self) -> float:
        """Milliseconds from this mark to a later one, both passed."""
        ...


class _Sample(NamedTuple):
    way: int
    start: TimedEvent
    end: TimedEvent


class Trials:
    """Does work in turn in each way, times it on the device, and goes on with the fastest.

    What is fastest depends on how hot the device is and what it may draw, which a measurement at
    start does not meet; therefore the work itself is timed, the ways taking turns, and again after
    longer and longer pauses. Nobody waits for a time: those that have passed are looked up.
    """

    def __init__(self, num_ways: int, new_event: Callable[[], TimedEvent]) -> None:
        """Begin with a round; until its end the first way is the best."""
        self.best = 0
        self._num_ways = num_ways
        self._new_event = new_event
        self._rest = FIRST_REST
        self._calls_until_round = 0
        self._num_started = 0
        self._under_way: deque[_Sample] = deque()
        self._times_ms: list[list[float]] = [[] for _ in range(num_ways)]

    def run(self, work: Callable[[int], T]) -> T:
        """The work in one of the ways, by its number."""
        if self._calls_until_round > 0:
            self._calls_until_round -= 1
            return work(self.best)
        if self._num_started == self._num_ways * SAMPLES:
            self._look()
            if not self._under_way:
                self._settle()
            return work(self.best)
        way = self._num_started % self._num_ways
        self._num_started += 1
        start, end = self._new_event(), self._new_event()
        start.record()
        result = work(way)
        end.record()
        self._under_way.append(_Sample(way, start, end))
        return result

    def _look(self) -> None:
        while self._under_way and self._under_way[0].end.query():
            way, start, end = self._under_way.popleft()
            self._times_ms[way].append(start.elapsed_time(end))

    def _settle(self) -> None:
        typical = [median(times) for times in self._times_ms]
        fastest = min(range(self._num_ways), key=typical.__getitem__)
        self.best = fastest if typical[fastest] <= MIN_GAIN * typical[0] else 0
        self._calls_until_round = self._rest
        self._rest = min(2 * self._rest, LONGEST_REST)
        self._num_started = 0
        self._times_ms = [[] for _ in range(self._num_ways)]
