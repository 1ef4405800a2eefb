"""How a child process learns that its parent is gone, and what an exit code says to people."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
"""Signals that a process brings on itself; any other comes from outside."""

_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


def read_settings(stdin: int) -> bytes:
    """The line that the parent writes to a child's standard input before anything else.

    The parent keeps the input open; see `end_with_parent`.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(stdin, _READ_BYTES)
        if not data:
            raise SystemExit("This program is started by Chiplet itself, not by hand.")
        line += data
    return bytes(line)


def end_with_parent(stdin: int, *, at_once: bool) -> None:
    """End this process when its standard input does, which its parent holds open.

    Args:
        stdin: the standard input.
        at_once: the kernel may kill the process when the thread that started it ends. Needs no
            interpreter, which a long native call may hold.
    """
    threading.Thread(target=_end_after, args=(stdin,), name="parent-watch", daemon=True).start()
    # Only Linux has this.
    if at_once and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit code in words, like 'exit code 1' or 'signal SIGKILL'."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _end_after(stdin: int) -> None:
    while os.read(stdin, _READ_BYTES):
        pass
    os._exit(1)
