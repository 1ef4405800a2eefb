"""The engine process's loop: take requests, step while there is work, sleep otherwise."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chiplet.config import EngineConfig
from chiplet.crash import InUse
from chiplet.errors import QueueFull, RequestError
from chiplet.ipc.messages import (
    Abort,
    AddRequest,
    AnswerOpened,
    EngineReady,
    Recovered,
    Refused,
    Stats,
    StepTokens,
    ToEngine,
    unpack_token_ids,
)
from chiplet.ipc.sockets import Inbox, Outbox
from chiplet.request import Request, RequestLimits, RequestOutput
from chiplet.scheduler.stats import SchedulerStats
from chiplet.server.child import (
    DETOKENIZER_SOCKET,
    ENGINE_SOCKET,
    SERVER_SOCKET,
    begin_child,
    explain_failure,
    leave_stacks,
)
from chiplet.server.termination import Terminated, Termination

STATS_INTERVAL_S = 0.1
"""Statistics of a busy engine are sent at most this often."""

IDLE_LOOK_S = 1.0
"""An idle engine is asked so often whether it still can work."""

_SLICE_S = 0.001
"""While arrivals are waited for, the engine is asked so often whether it still has time."""

logger = logging.getLogger(__name__)


class News(Protocol):
    """A step failed, and the engine goes on; see `chiplet.engine.Mended`."""

    @property
    def message(self) -> str:
        """For people."""
        ...

    @property
    def plan(self) -> dict[str, Any]:
        """Who serves each operation from now on."""
        ...

    @property
    def in_use(self) -> tuple[InUse, ...]:
        """Whom another start may do without."""
        ...


class ServedEngine(Protocol):
    """What the loop needs of an engine; `chiplet.engine.Engine` is one."""

    @property
    def has_work(self) -> bool:
        """Some request is waiting or running, or some output is not yet delivered."""
        ...

    def add(self, request: Request) -> None:
        """Take a request.

        Raises:
            RequestError: it cannot be served.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request; unknown ones are ignored."""
        ...

    def spare_s(self) -> float:
        """Seconds for which `step` may wait for requests at no cost. Never blocks."""
        ...

    def step(self) -> list[RequestOutput]:
        """Advance all requests. Blocks for about one step of the device."""
        ...

    def take_news(self) -> Sequence[News]:
        """What has been mended since the last call."""
        ...

    def stats(self) -> SchedulerStats:
        """Counters at this moment."""
        ...


StartEngine = Callable[[EngineConfig], tuple[ServedEngine, EngineReady]]
"""Makes an engine from its settings; takes as long as loading a model does."""


@dataclass(frozen=True, slots=True)
class EngineSockets:
    """The engine's three connections."""

    inbox: Inbox[ToEngine]
    detokenizer: Outbox
    server: Outbox

    @classmethod
    def open(cls, directory: Path) -> EngineSockets:
        """Sockets among those of a generation."""
        return cls(
            inbox=Inbox(directory / ENGINE_SOCKET, ToEngine),
            detokenizer=Outbox(directory / DETOKENIZER_SOCKET),
            server=Outbox(directory / SERVER_SOCKET),
        )

    def close(self) -> None:
        """Close all three."""
        self.inbox.close()
        self.detokenizer.close()
        self.server.close()


def run_engine(start: StartEngine) -> int:
    """Be the engine process; returns when the engine fails or SIGTERM tells it to end.

    Returns:
        The exit code, negative for a signal. A further SIGTERM does nothing: what the caller does
        at the end is not cut short by it.
    """
    settings = begin_child()
    termination = Termination()
    termination.watch()
    directory = Path(settings.directory)
    leave_stacks(directory)
    sockets = EngineSockets.open(directory)
    try:
        with termination.raising():
            engine, ready = start(settings.config)
        # Again, since libraries of vendors take the signal for themselves when they are loaded.
        termination.watch()
        sockets.server.send(ready)
        seeds = random.Random(settings.config.schedule.random_seed)
        EngineLoop(engine, sockets, ready.limits, seeds, termination).run()
    except Terminated:
        return -signal.SIGTERM
    except Exception as error:
        sockets.server.send(explain_failure(error))
    finally:
        sockets.close()
    return 1


@dataclass(slots=True)
class EngineLoop:
    """Feeds one engine from its socket and sends on what comes out.

    Attributes:
        limits: what requests the engine can take.
        seeds: draws seeds for requests without one.
        termination: whether to end, asked before each step.
    """

    engine: ServedEngine
    sockets: EngineSockets
    limits: RequestLimits
    seeds: random.Random
    termination: Termination
    _opened: list[AnswerOpened] = field(default_factory=list[AnswerOpened])
    _closed: list[str] = field(default_factory=list[str])
    _stats_due_s: float = 0.0

    def run(self) -> None:
        """Serve; blocks on the socket while there is nothing to do.

        Raises:
            Terminated: the process has been told to end.
            Exception: whatever ends the engine.
        """
        self._send_stats()
        while True:
            if not self.engine.has_work:
                self._wait_for_work()
            self._take_arrivals()
            outputs = self.engine.step() if self.engine.has_work else []
            for each in self.engine.take_news():
                self.sockets.server.send(Recovered(each.message, each.plan, each.in_use))
            # Statistics go first: whoever has seen an answer's end finds it counted.
            self._send_stats()
            self._send_tokens(outputs)

    def _wait_for_work(self) -> None:
        """Block until something has come, or an idle engine has lost what it needs."""
        inbox = self.sockets.inbox
        while not inbox.wait(self.termination, limit_s=IDLE_LOOK_S):
            if self.engine.has_work:
                return

    def _take_arrivals(self) -> None:
        """Take what has come, and what comes until the next step should be launched."""
        while True:
            self.termination.check()
            for message in self.sockets.inbox.pending():
                self._take(message)
            if self.engine.spare_s() < _SLICE_S:
                return
            self.sockets.inbox.wait(self.termination, limit_s=_SLICE_S)

    def _take(self, message: ToEngine) -> None:
        match message:
            case AddRequest():
                self._add(message)
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    self.engine.abort(request_id)
                self._closed += request_ids

    def _add(self, message: AddRequest) -> None:
        sampling = message.sampling
        try:
            request = self.limits.request(
                message.request_id,
                unpack_token_ids(message.prompt),
                sampling,
                seed=self.seeds.getrandbits(64),
                arrival_s=time.monotonic(),
            )
            self.engine.add(request)
        except RequestError as error:
            self.sockets.server.send(_refused(message.request_id, error))
            return
        self._opened.append(
            AnswerOpened(
                request.request_id,
                sampling.stop,
                sampling.skip_special_tokens,
                sampling.include_stop_in_output,
                message.continues_prompt,
            )
        )

    def _send_tokens(self, outputs: list[RequestOutput]) -> None:
        if not outputs and not self._closed:
            return
        message = StepTokens(tuple(self._opened), tuple(outputs), tuple(self._closed))
        self.sockets.detokenizer.send(message)
        self._opened.clear()
        self._closed.clear()

    def _send_stats(self) -> None:
        now_s = time.monotonic()
        if now_s < self._stats_due_s and self.engine.has_work:
            return
        self._stats_due_s = now_s + STATS_INTERVAL_S
        self.sockets.server.send(Stats(self.engine.stats()))


def _refused(request_id: str, error: RequestError) -> Refused:
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull) else None
    return Refused(request_id, str(error), error.code, error.param, retry_after_s)
