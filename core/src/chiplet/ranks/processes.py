"""RankProcesses: the processes of further ranks, as rank 0 starts, watches and ends them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from chiplet.ipc.process_ends import CRASHES, describe_exit
from chiplet.ranks.messages import RankSettings

COMMAND = (sys.executable, "-m", "chiplet.ranks.rank_process")

END_LIMIT_S = 5.0
"""How long ranks that were told to end may take before they are killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Death:
    """How a rank's process ended; printed as people read it."""

    rank: int
    code: int

    @property
    def is_crash(self) -> bool:
        """It brought its end on itself."""
        return -self.code in CRASHES

    def __str__(self) -> str:
        return f"Rank {self.rank} ended with {describe_exit(self.code)}."


class RankProcesses:
    """The processes of ranks 1 and up."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []
        self._are_settled = False

    def start(self, count: int) -> None:
        """Start so many; they import what they need, and wait for their settings."""
        for _ in range(count):
            # A session of its own: Ctrl-C in the terminal is for rank 0, which ends the others.
            child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, start_new_session=True)
            self._children.append(child)

    def settle(self, settings: Sequence[RankSettings]) -> None:
        """Give each its settings, in the order of ranks."""
        self._are_settled = True
        for child, each in zip(self._children, settings, strict=True):
            assert child.stdin is not None
            try:
                # Standard input stays open; its end tells the rank that rank 0 is gone.
                child.stdin.write(msgspec.json.encode(each) + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                pass  # Dead already, which `first_death` shows.

    def first_death(self) -> Death | None:
        """A rank that has ended, if any has. Never blocks."""
        for rank, child in enumerate(self._children, start=1):
            code = child.poll()
            if code is not None:
                return Death(rank, code)
        return None

    @property
    def are_started(self) -> bool:
        """Whether there are any."""
        return bool(self._children)

    def end(self) -> None:
        """See that all end, who have been told to; kills who has not in time. May be repeated."""
        if not self._are_settled:  # they listen to nobody yet
            for child in self._children:
                child.kill()
        limit_s = time.monotonic() + END_LIMIT_S
        for rank, child in enumerate(self._children, start=1):
            try:
                child.wait(max(0.0, limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("Rank %d has not ended in %g s, and is killed.", rank, END_LIMIT_S)
                child.kill()
                child.wait()
            assert child.stdin is not None
            child.stdin.close()
        self._children.clear()


def may_end_at_once() -> bool:
    """Whether the kernel may kill what this thread starts when the thread ends.

    The process's first thread ends with the process; another may end before.
    """
    return threading.current_thread() is threading.main_thread()
