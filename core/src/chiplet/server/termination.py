"""Termination: a child process that is told to end does so in order, between two steps."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """This process has been told to end; no error, so nobody takes it for one of a plugin's."""


class Termination:
    """SIGTERM, remembered: an exception during a start, elsewhere a thing to ask for.

    A step is not torn apart, and what runs at the end runs to its own end. Whoever waits for the
    process kills it if that takes too long.
    """

    def __init__(self) -> None:
        self._is_told = False
        self._may_raise = False
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._writable, False)

    def watch(self) -> None:
        """Take SIGTERM from now on, in place of the process's death."""
        signal.signal(signal.SIGTERM, self._note)
        # A signal need not interrupt what the main thread waits for: it may come just before, or
        # to another thread. What waits for this pipe too is woken in any case.
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Can be read from once the process has been told to end."""
        return self._readable

    def check(self) -> None:
        """A place between two steps, where the end may come.

        Raises:
            Terminated: the process has been told to end.
        """
        if self._is_told:
            raise Terminated

    @contextmanager
    def raising(self) -> Generator[None]:
        """A long undertaking that the end may cut short anywhere.

        Raises:
            Terminated: the process has been told to end.
        """
        # In this order: a signal between the two is not missed.
        self._may_raise = True
        try:
            self.check()
            yield
        finally:
            self._may_raise = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True
        if self._may_raise:
            self._may_raise = False
            raise Terminated


def end_with(exit_code: int) -> NoReturn:
    """End this process; with a negative code by that signal, as if it had not been handled.

    The interpreter's own end, which waits for threads that still compile, is then passed over.
    """
    if exit_code < 0:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(-exit_code, signal.SIG_DFL)
        signal.raise_signal(-exit_code)
    sys.exit(exit_code)
