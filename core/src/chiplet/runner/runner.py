"""ModelRunner: launches plans on one device."""

from __future__ import annotations

import numpy as np
import torch

from chiplet.api import Event, Executable, Logprobs, Platform, ShapeBucket, StepOutputs
from chiplet.errors import EngineError
from chiplet.runner.batch_builder import BatchBuilder
from chiplet.runner.executables import Executables
from chiplet.runner.peers import ALONE, Peers
from chiplet.runner.slots import SlotTables
from chiplet.step import LogprobRows, StepPlan, StepResult


class ModelRunner:
    """Runs a model's steps in the order of their plans; see `chiplet.step.Runner`."""

    def __init__(
        self,
        executables: Executables,
        *,
        platform: Platform,
        tables: SlotTables,
        builder: BatchBuilder,
        peers: Peers = ALONE,
    ) -> None:
        self._executables = executables
        self._platform = platform
        self._tables = tables
        self._builder = builder
        self._peers = peers

    def prepare(self, *, in_background: bool) -> None:
        """Have the platform prepare its buckets, now or while steps run."""
        self._executables.prepare(in_background=in_background)

    def retire(self) -> None:
        """Prepare no more; waits for what is being prepared. No step may be launched afterwards."""
        self._executables.retire()

    def prepare_one(self, bucket: ShapeBucket) -> str:
        """Have the platform prepare a bucket; why it could not, or an empty text."""
        return self._executables.prepare_one(bucket)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start one step and return without waiting for the device."""
        with self._executables.launching():
            self._take(plan)
            executable = self._executables.find(self._builder.shape(plan))
            self._peers.launch(plan, executable.bucket)
            return self._started(plan, executable)

    @torch.inference_mode()
    def launch_in(self, plan: StepPlan, bucket: ShapeBucket) -> LaunchedStep:
        """Start a step in the bucket that rank 0 has found for it."""
        with self._executables.launching():
            self._take(plan)
            return self._started(plan, self._executables.given(bucket))

    def _take(self, plan: StepPlan) -> None:
        self._tables.admit(plan.admissions)
        self._tables.update_pages(plan.page_updates)

    def _started(self, plan: StepPlan, executable: Executable) -> LaunchedStep:
        outputs = executable.launch(self._builder.build(plan, executable.bucket))
        return LaunchedStep(plan, executable.bucket.num_requests, outputs, self._platform)


class LaunchedStep:
    """A step whose tokens are on their way to the host; see `chiplet.step.PendingStep`."""

    def __init__(
        self, plan: StepPlan, num_rows: int, outputs: StepOutputs, platform: Platform
    ) -> None:
        """Start the copies.

        Args:
            plan: what was launched.
            num_rows: requests of the bucket: prompt rows follow theirs.
            outputs: of the step.
            platform: brings them to the host.
        """
        self._plan = plan
        self._num_rows = num_rows
        self._token_ids = platform.to_host_async(outputs.token_ids)
        self._logprobs: Logprobs | None = None
        if outputs.logprobs is not None:
            self._logprobs = Logprobs(*map(platform.to_host_async, outputs.logprobs))
        self._event: Event = platform.record_event()

    def is_done(self) -> bool:
        """Whether the tokens have arrived."""
        return self._event.is_done()

    def wait(self) -> StepResult:
        """The step's result; blocks until the tokens have arrived."""
        try:
            self._event.wait()
        except RuntimeError as error:
            raise EngineError(f"The device failed in step {self._plan.step_id}: {error}") from error
        chunks, targets = self._plan.chunks, self._plan.prompt_targets
        sampled = np.flatnonzero(chunks.is_sampled)
        prompt = self._num_rows + np.arange(np.count_nonzero(targets >= 0))
        return StepResult(
            step_id=self._plan.step_id,
            token_ids=self._token_ids.numpy()[sampled],
            logprobs=_rows(self._logprobs, sampled),
            prompt_logprobs=_rows(self._logprobs, prompt) if len(prompt) else None,
        )


def _rows(logprobs: Logprobs | None, rows: np.ndarray) -> LogprobRows | None:
    if logprobs is None:
        return None
    return LogprobRows(*(each.numpy()[rows] for each in logprobs))
