"""Company: the further ranks, as rank 0 has them: started, met, led and ended."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from chiplet.api import Communicator, ShapeBucket, SharedPlatform, Topology
from chiplet.config import EngineConfig
from chiplet.errors import ConfigError, EngineError
from chiplet.plugins import ChosenDevice
from chiplet.plugins.patience import patience
from chiplet.ranks.links import LeaderLink
from chiplet.ranks.messages import (
    EndOrder,
    LaunchOrder,
    Prepared,
    PrepareOrder,
    RankFailed,
    RankSettings,
    Said,
    Told,
    ToLeader,
)
from chiplet.ranks.processes import RankProcesses, may_end_at_once
from chiplet.seats import Seat
from chiplet.step import StepPlan

_LOOK_S = 0.05
"""While a rank is waited for, how often it is asked whether all still live."""

_LAST_WORDS_S = 2.0
"""After a step has failed: how long the rank that may have caused it may take to say so."""


class Company:
    """Ranks 1 and up. A `Muster` of rank 0, its `Meeting` and the `Peers` of its runner.

    Attributes:
        rank: 0.
    """

    rank = 0

    def __init__(self, size: int) -> None:
        """Make a folder for sockets; nobody is started yet.

        Args:
            size: number of ranks, with rank 0.
        """
        self._size = size
        # mkdtemp makes the folder for its owner alone.
        self._folder = Path(tempfile.mkdtemp(prefix="chiplet-ranks-"))
        self._link = LeaderLink(self._folder, size)
        self._processes = RankProcesses()
        # Whoever holds it uses the link: launches and preparations come from different threads.
        self._lock = threading.Lock()
        self._is_over = False
        # Why no step can run any more, once it is known: a rank says it once.
        self._found: EngineError | None = None
        self._at_end = ExitStack()

    def gather(self) -> None:
        """Start the others; see `chiplet.seats.Muster`."""
        self._processes.start(self._size - 1)

    def seat(self, config: EngineConfig, chosen: ChosenDevice) -> Seat:
        """Tell the others who they are; see `chiplet.seats.Muster`."""
        devices = _devices(chosen, self._size)
        self._processes.settle(
            [
                RankSettings(
                    folder=str(self._folder),
                    rank=rank,
                    size=self._size,
                    config=replace(config, device=replace(config.device, device=devices[rank])),
                    log_level=logging.getLogger("chiplet").getEffectiveLevel(),
                    ends_at_once=may_end_at_once(),
                )
                for rank in range(1, self._size)
            ]
        )
        topology = Topology(world_size=self._size, local_ranks=(0,), rendezvous=str(self._folder))
        return Seat(topology=topology, meeting=self)

    def exchange(self, message: bytes) -> Sequence[bytes]:
        """What every rank gave; see `chiplet.plugins.agreement.Meeting`.

        Raises:
            ConfigError: a rank cannot start, or has ended.
        """
        words = {0: message}
        with patience("the start of the other ranks"):
            while len(words) < self._size:
                said = self._hear()
                if isinstance(said, Said):
                    words[said.rank] = said.word
        told = tuple(words[rank] for rank in range(self._size))
        with self._lock:
            self._link.tell(Told(told))
        return told

    def settle(self, communicator: Communicator) -> None:
        """All are connected: the folder, which nobody opens any more, goes.

        Args:
            communicator: of this rank; it is closed at the end.
        """
        self._at_end.callback(communicator.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    def launch(self, plan: StepPlan, bucket: ShapeBucket) -> None:
        """Have all launch a step; see `chiplet.runner.peers.Peers`."""
        with self._lock:
            self._link.tell(LaunchOrder(plan, bucket))

    def prepare(self, bucket: ShapeBucket) -> Callable[[], None]:
        """Have all prepare a bucket; see `chiplet.runner.peers.Peers`."""
        with self._lock:
            if self._is_over:
                raise RuntimeError("the other ranks have ended")
            self._link.tell(PrepareOrder(bucket))
        return self._wait_prepared

    def lost(self) -> EngineError | None:
        """Why the engine cannot go on, if a rank has ended. Never blocks for long."""
        if self._is_over or self._processes.first_death() is None:
            return None
        return self._fault()

    def explain(self, error: BaseException) -> EngineError:
        """What a failed step of rank 0 means for the engine: its end.

        The rank that made it fail may have said why.
        """
        fault = self._fault()
        if fault is not None:
            return fault
        return EngineError(
            f"A step failed on rank 0, and the other ranks cannot go on: "
            f"{type(error).__name__}: {error}"
        )

    def end(self) -> None:
        """End all; may be repeated."""
        if self._is_over:
            return
        with self._lock:
            self._is_over = True
            if self._processes.are_started:
                self._link.tell(EndOrder())
        # Whoever waits for this rank in a collective waits no more.
        self._at_end.close()
        self._processes.end()
        self._link.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hear(self) -> ToLeader | None:
        """What has come meanwhile, if anything.

        Raises:
            ConfigError: a rank cannot start, or has ended.
        """
        with self._lock:
            death = self._processes.first_death()
            message = self._link.hear(_LOOK_S)
        if isinstance(message, RankFailed):
            raise ConfigError(
                f"Rank {message.rank} cannot start: {message.message}", remedy=message.remedy
            )
        if message is None and death is not None:
            raise ConfigError(
                f"{death} It had not said why.", remedy="Its last words are in the log above."
            )
        return message

    def _wait_prepared(self) -> None:
        answers: dict[int, str] = {}
        while len(answers) < self._size - 1:
            message = self._hear()
            if isinstance(message, Prepared):
                answers[message.rank] = message.failure
        failures = [f"rank {rank}: {text}" for rank, text in sorted(answers.items()) if text]
        if failures:
            raise RuntimeError("; ".join(failures))

    def _fault(self) -> EngineError | None:
        """What a rank that has failed says of it; None if none fails within a short time."""
        end_s = time.monotonic() + _LAST_WORDS_S
        while self._found is None and time.monotonic() < end_s:
            with self._lock:
                death = self._processes.first_death()
                message = self._link.hear(_LOOK_S)
            if isinstance(message, RankFailed):
                self._found = EngineError(
                    f"Rank {message.rank} failed: {message.message}", deny=message.deny
                )
            elif death is not None and message is None:
                self._found = EngineError(str(death), is_crash=death.is_crash)
        return self._found


def _devices(chosen: ChosenDevice, size: int) -> list[str]:
    """The device of each rank: the same one if it is shared, otherwise it and those after it."""
    if isinstance(chosen.platform, SharedPlatform):
        return [chosen.label] * size
    probe = chosen.probe
    return [f"{probe.device_type}:{probe.index + rank}" for rank in range(size)]
