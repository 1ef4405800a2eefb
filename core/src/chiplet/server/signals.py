"""Signals that end a server, and who handles them at the moment."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SignalHandler = Callable[[int, FrameType | None], object]


@contextmanager
def handling_signals(handler: SignalHandler) -> Generator[None]:
    """Handle SIGTERM and SIGINT so, and as before afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
