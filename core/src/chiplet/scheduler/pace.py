"""Pace: for how long the next plan may wait for requests that are about to arrive.

Steps are planned one ahead, so that the device never waits for the host. Who arrives just after a
plan was made waits for the end of two steps. A plan made when the step before it is about to end
keeps the device as busy, and takes along who came meanwhile.
"""

from __future__ import annotations

from collections import deque

_SIZE = 16
"""Steps whose tokens are as many such units count as equally long."""

_REMEMBERED_STEPS = 4
_REMEMBERED_LAUNCHES = 8

_MARGIN = 0.1
"""Part of a step by which it may turn out shorter than those before it."""

_LAUNCHES = 2.0
"""Launches for which time is left: one may take longer than those before it."""


class Pace:
    """Knows how long steps and their launches took; all times are of one clock, in seconds.

    A step begins when it has been launched and the one before it has ended.
    """

    def __init__(self) -> None:
        self._steps: dict[int, deque[float]] = {}
        self._launches: deque[float] = deque(maxlen=_REMEMBERED_LAUNCHES)
        # Size and time of the launch, of steps in flight.
        self._in_flight: deque[tuple[int, float]] = deque()
        self._last_end_s = 0.0

    def launched(self, num_tokens: int, *, start_s: float, end_s: float) -> None:
        """Take note of a step: when its planning began, and when its launch was done."""
        self._launches.append(end_s - start_s)
        self._in_flight.append((-(-num_tokens // _SIZE), end_s))

    def ended(self, now_s: float) -> None:
        """Take note that the oldest step in flight has ended."""
        size, launched_s = self._in_flight.popleft()
        took_s = now_s - max(launched_s, self._last_end_s)
        self._steps.setdefault(size, deque(maxlen=_REMEMBERED_STEPS)).append(took_s)
        self._last_end_s = now_s

    def spare_s(self, now_s: float) -> float:
        """How long the next launch may wait without keeping the device idle; 0 if nobody knows.

        Only while one step is in flight: with more there is time, with none there is none.
        """
        if len(self._in_flight) != 1:
            return 0.0
        size, launched_s = self._in_flight[0]
        durations = self._steps.get(size)
        if durations is None:
            return 0.0
        end_s = max(launched_s, self._last_end_s) + (1 - _MARGIN) * min(durations)
        return max(0.0, end_s - _LAUNCHES * max(self._launches) - now_s)
