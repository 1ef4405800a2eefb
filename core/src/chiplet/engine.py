"""Engine: plan, run, commit."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from chiplet.crash import InUse
from chiplet.errors import EngineError
from chiplet.request import Request, RequestOutput
from chiplet.scheduler.pace import Pace
from chiplet.scheduler.scheduler import Scheduler
from chiplet.scheduler.stats import SchedulerStats
from chiplet.step import PendingStep, Runner, StepPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Launched:
    plan: StepPlan
    pending: PendingStep


@dataclass(frozen=True, slots=True, eq=False)
class Mended:
    """How an engine goes on after a step has raised.

    Attributes:
        runner: takes the next steps, on the same pages and slots.
        message: for people: what failed and is done without.
        plan: who serves each operation from now on, ready for JSON.
        in_use: whom another start may do without.
    """

    runner: Runner
    message: str
    plan: dict[str, Any]
    in_use: tuple[InUse, ...] = ()


class Recovery(Protocol):
    """Knows what a step's error means; `chiplet.recovery.Recovery` is one."""

    def recover(self, error: Exception) -> Mended | None:
        """Mend what the error shows to be broken; None if there is nothing to mend.

        No step is in flight. May take as long as loading a model does.

        Raises:
            EngineError: nothing can run on the device any more.
        """
        ...


class Others(Protocol):
    """Other processes that steps run in; `chiplet.ranks.company.Company` is one."""

    def lost(self) -> EngineError | None:
        """Why no step can run any more, though none has failed. Never blocks for long."""
        ...

    def end(self) -> None:
        """End them; may be repeated."""
        ...


class _Nobody:
    def lost(self) -> EngineError | None:
        return None

    def end(self) -> None:
        pass


NOBODY = _Nobody()


class Engine:
    """Drives a scheduler and a runner, one step ahead of the device."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        recovery: Recovery | None = None,
        others: Others = NOBODY,
        *,
        is_host_free: bool = True,
    ) -> None:
        """Drive them.

        Args:
            scheduler: who runs when.
            runner: runs plans.
            recovery: mends what a step breaks.
            others: what steps need beside this process.
            is_host_free: whether the device computes without this process. Where it does not, who
                waits for a step computes too, and no plan waits for arrivals.
        """
        self._others = others
        self._scheduler = scheduler
        self._runner = runner
        self._recovery = recovery
        self._is_host_free = is_host_free
        self._in_flight: deque[_Launched] = deque()
        self._pace = Pace()
        # Outputs that no step brought, until the next call of `step`.
        self._outputs: list[RequestOutput] = []
        # Why a step failed, until it has been looked into.
        self._failure: Exception | None = None
        # The device failed; nothing can run on it any more.
        self._fault: EngineError | None = None
        self._news: list[Mended] = []

    @property
    def has_work(self) -> bool:
        """Some request has not ended, or an output or a failure is not yet dealt with."""
        is_failing = self._failure is not None or self._fault is not None
        return (
            is_failing
            or self._others.lost() is not None
            or self._scheduler.has_work
            or bool(self._outputs)
        )

    def stats(self) -> SchedulerStats:
        """Counts at this moment."""
        return self._scheduler.stats()

    def add(self, request: Request) -> None:
        """Take a request; its outputs come from `step`.

        Raises:
            RequestError: it can never be served, or too many wait.
        """
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """End a request; its last output comes from `step`. Unknown ones are ignored."""
        output = self._scheduler.abort(request_id)
        if output is not None:
            self._outputs.append(output)

    def close(self) -> None:
        """End what steps needed beside this process; again is harmless."""
        self._others.end()

    def take_news(self) -> list[Mended]:
        """What has been mended since the last call."""
        news, self._news = self._news, []
        return news

    def spare_s(self) -> float:
        """Seconds for which `step` may still wait without keeping the device idle.

        Who is added meanwhile takes part in the next step. 0 if the device, an output or a failure
        waits or this process computes, if no request that came now could take part, or if nobody
        knows.
        """
        if not self._is_host_free:
            return 0.0
        is_waiting = bool(self._outputs) or self._failure is not None or self._fault is not None
        if is_waiting or not self._scheduler.can_admit or self._is_next_done():
            return 0.0
        return self._pace.spare_s(time.perf_counter())

    def step(self) -> list[RequestOutput]:
        """Launch the next step, then wait for the one before it; what became known.

        Blocks for about one step of the device.

        Raises:
            EngineError: the device failed. The call before gave the last outputs of the step that
                failed; this engine is of no use any more.
        """
        if self._failure is not None:
            self._look_into(self._failure)
        self._fault = self._fault or self._others.lost()
        if self._fault is not None:
            if self._outputs:
                return self._take_outputs()
            raise self._fault
        is_ahead = self._launch_next()
        # The step just launched stays in flight, unless the device is done with it already.
        while len(self._in_flight) > is_ahead or self._is_next_done():
            self._commit_next()
        return self._take_outputs()

    def _take_outputs(self) -> list[RequestOutput]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _look_into(self, failure: Exception) -> None:
        """Wait for the steps in flight, then mend what made one fail."""
        while self._in_flight:
            self._commit_next()
        self._failure = None
        try:
            mended = None if self._recovery is None else self._recovery.recover(failure)
        except EngineError as fault:
            self._fault = fault
            return
        if mended is not None:
            self._runner = mended.runner
            self._news.append(mended)
        elif isinstance(failure, EngineError):
            self._fault = failure

    def _launch_next(self) -> bool:
        start_s = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan is None:
            return False
        try:
            self._in_flight.append(_Launched(plan, self._runner.launch(plan)))
        except BaseException as error:
            self._fail(plan, error)
            return False
        self._pace.launched(plan.num_tokens, start_s=start_s, end_s=time.perf_counter())
        return True

    def _is_next_done(self) -> bool:
        if not self._in_flight:
            return False
        try:
            return self._in_flight[0].pending.is_done()
        except Exception:
            return True  # Waiting for it will tell what is wrong.

    def _commit_next(self) -> None:
        launched = self._in_flight.popleft()
        try:
            try:
                result = launched.pending.wait()
            finally:
                self._pace.ended(time.perf_counter())
        except BaseException as error:
            self._fail(launched.plan, error)
        else:
            self._outputs += self._scheduler.commit(result)

    def _fail(self, plan: StepPlan, error: BaseException) -> None:
        """End the requests of a step; lets out what was not meant for the step, like Ctrl-C."""
        self._outputs += self._scheduler.fail(plan, f"{type(error).__name__}: {error}")
        if isinstance(error, SystemExit):
            # An implementation that was written for a command line leaves so, and means itself.
            left, error = error, RuntimeError(f"SystemExit: {error}")
            error.__cause__ = left
        if not isinstance(error, Exception):
            raise error
        _log.error("Step %d failed: %s", plan.step_id, error, exc_info=error)
        if self._failure is None or isinstance(error, EngineError):
            self._failure = error
