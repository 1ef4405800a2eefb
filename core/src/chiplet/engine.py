"""Engine: plan, run, commit."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from chiplet.errors import EngineError
from chiplet.request import Request, RequestOutput
from chiplet.scheduler.scheduler import Scheduler
from chiplet.scheduler.stats import SchedulerStats
from chiplet.step import PendingStep, Runner, StepPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Launched:
    plan: StepPlan
    pending: PendingStep


class Engine:
    """Drives a scheduler and a runner, one step ahead of the device."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._in_flight: deque[_Launched] = deque()
        # Outputs that no step brought, until the next call of `step`.
        self._outputs: list[RequestOutput] = []
        # The device failed; nothing can run on it any more.
        self._fault: EngineError | None = None

    @property
    def has_work(self) -> bool:
        """Some request has not ended, or an output or a fault is not yet delivered."""
        return self._scheduler.has_work or bool(self._outputs) or self._fault is not None

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

    def step(self) -> list[RequestOutput]:
        """Launch the next step, then wait for the one before it; what became known.

        Blocks for about one step of the device.

        Raises:
            EngineError: the device failed. The call before gave the last outputs of the step that
                failed; this engine is of no use any more.
        """
        if self._fault is not None:
            raise self._fault
        is_ahead = self._launch_next()
        # The step just launched stays in flight, unless the device is done with it already.
        while len(self._in_flight) > is_ahead or self._is_next_done():
            self._commit_next()
        outputs, self._outputs = self._outputs, []
        return outputs

    def _launch_next(self) -> bool:
        plan = self._scheduler.schedule()
        if plan is None:
            return False
        try:
            self._in_flight.append(_Launched(plan, self._runner.launch(plan)))
        except BaseException as error:
            self._fail(plan, error)
            return False
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
            result = launched.pending.wait()
        except BaseException as error:
            self._fail(launched.plan, error)
        else:
            self._outputs += self._scheduler.commit(result)

    def _fail(self, plan: StepPlan, error: BaseException) -> None:
        """End the requests of a step; lets out what was not meant for the step, like Ctrl-C."""
        self._outputs += self._scheduler.fail(plan, f"{type(error).__name__}: {error}")
        if not isinstance(error, Exception):
            raise error
        _log.error("Step %d failed: %s", plan.step_id, error, exc_info=error)
        if isinstance(error, EngineError):
            self._fault = self._fault or error
