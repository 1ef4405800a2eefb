"""Health: what is known of the child processes behind the port, and how silence is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

WATCH_INTERVAL_S = 0.1
"""Between two looks at how long the engine has been silent."""

MAX_EVENTS = 20
"""Failures and recoveries that are remembered, newest last."""


class EngineStatus(StrEnum):
    """What the engine is doing."""

    STARTING = "starting"
    OK = "ok"
    RESTARTING = "restarting"


class HealthReport(msgspec.Struct, frozen=True):
    """The body of `/health`.

    Attributes:
        status: 'ok', 'starting' or 'restarting'.
        silent_s: while answers are open, how long nothing has come from the engine; else 0.
        restarts: how often the engine was started again.
        denied: implementations that restarted engines do without, as `--deny` takes them.
        events: what failed and what was done about it, oldest first.
        ranks: where each rank of the engine is; empty if there is one.
    """

    status: EngineStatus
    silent_s: float
    restarts: int
    denied: tuple[str, ...]
    events: tuple[str, ...]
    ranks: tuple[str, ...] = ()


@dataclass(slots=True)
class Health:
    """What is known of the engine; the supervisor alone changes it.

    Attributes:
        now_s: a clock, for tests.
    """

    now_s: Callable[[], float] = time.monotonic
    status: EngineStatus = EngineStatus.STARTING
    restarts: int = 0
    denied: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    _events: list[str] = field(default_factory=list[str])
    _sign_s: float = 0.0

    def note_sign(self) -> None:
        """Something came from the engine, or nothing is asked of it."""
        self._sign_s = self.now_s()

    def note_event(self, text: str) -> None:
        """Something failed, or was mended."""
        self._events = [*self._events[-MAX_EVENTS + 1 :], text]

    def silent_s(self) -> float:
        """How long nothing has come from the engine."""
        return self.now_s() - self._sign_s

    def report(self, *, is_busy: bool) -> HealthReport:
        """All of it at this moment."""
        silent_s = round(self.silent_s(), 1) if is_busy else 0.0
        events = tuple(self._events)
        return HealthReport(self.status, silent_s, self.restarts, self.denied, events, self.ranks)


async def wait_silence(health: Health, limit_s: float, num_open: Callable[[], int]) -> str:
    """Return once the engine has been silent for too long while answers were open; says so.

    Args:
        health: told of every sign of life by whoever receives messages.
        limit_s: how long is too long; 0 waits for ever.
        num_open: answers that somebody waits for.
    """
    health.note_sign()
    while True:
        await asyncio.sleep(WATCH_INTERVAL_S)
        if not num_open():
            health.note_sign()
        elif limit_s and health.silent_s() > limit_s:
            return (
                f"The engine gave no sign of life for {limit_s:g} s while {num_open()} answers "
                "were open."
            )
