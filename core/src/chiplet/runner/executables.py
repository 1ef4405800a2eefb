"""Executables: which prepared form of the step runs a plan, and how the forms come to be."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chiplet.api import (
    Executable,
    Execution,
    HostInputs,
    PlanStorage,
    Platform,
    ShapeBucket,
    StepLimits,
    StepOutputs,
)
from chiplet.errors import ConfigError, EngineError
from chiplet.runner.peers import ALONE, Peers
from chiplet.runner.step_function import StepFunction

_log = logging.getLogger(__name__)

_PAUSE_S = 0.001
"""Between two preparations, so that a launch that waits for its turn gets it."""

_SHARE_BESIDE_LAUNCHES = 0.1
"""Part of the time that preparing may take while requests run: they pay for what it takes."""

_IDLE_S = 0.1
"""No launch for so long: nobody would notice a preparation."""

_MAX_REMEMBERED = 4096
"""Shapes whose bucket is remembered."""


class Executables:
    """Executables by bucket. One thread launches; another may prepare at the same time."""

    def __init__(
        self,
        function: StepFunction,
        platform: Platform,
        limits: StepLimits,
        *,
        is_eager: bool,
        peers: Peers = ALONE,
    ) -> None:
        """Know the buckets; nothing is prepared yet, and the peers prepare the same ones.

        Raises:
            ConfigError: eager steps are wanted where there are none, or a step has no bucket.
        """
        self._function = function
        self._platform = platform
        self._peers = peers
        self._is_compiled = platform.execution is Execution.STEP
        if is_eager and self._is_compiled:
            raise ConfigError(
                f"The device '{platform.name}' runs steps that are compiled whole; it cannot run "
                "them operation by operation.",
                remedy="Leave --eager out.",
            )
        buckets = () if is_eager else tuple(platform.buckets(limits))
        if self._is_compiled and not any(each.serves(limits.largest_step) for each in buckets):
            raise ConfigError(
                f"The device '{platform.name}' has no bucket for the largest step, "
                f"{limits.largest_step}.",
                remedy="Lower --max-running-requests, --chunked-prefill-size or --context-length.",
            )
        planning = function.groups_planned_on_host()
        if self._is_compiled and planning:
            raise ConfigError(
                f"The device '{platform.name}' compiles whole steps, but attention/{planning[0]} "
                "is planned on the host.",
                remedy=f"Pin another provider with --use attention/{planning[0]}=NAME.",
            )
        self._to_prepare = buckets
        self._by_size = sorted(buckets, key=_size)
        self._ready: dict[ShapeBucket, Executable] = {}
        # And why.
        self._failed: dict[ShapeBucket, str] = {}
        self._told: set[str] = set()
        self._remembered: dict[ShapeBucket, Executable] = {}
        self._is_retired = False
        self._num_launches = self._num_seen = 0
        # The bucket that the last launch would have had, if it is not ready.
        self._missed: ShapeBucket | None = None
        # Whoever holds it prepares.
        self._preparing = threading.Lock()
        self._behind: threading.Thread | None = None
        # An eager platform's operations share workspaces: either a launch or a preparation.
        self._lock = threading.Lock() if buckets and not self._is_compiled else None
        self._turn: AbstractContextManager[object] = self._lock or nullcontext()

    def launching(self) -> AbstractContextManager[object]:
        """Must be held while a step is launched."""
        return self._turn

    def find(self, shape: ShapeBucket) -> Executable:
        """The executable for a step of that exact shape, the smallest one that is ready.

        Blocks only where the step must be compiled first.

        Raises:
            EngineError: no bucket could be prepared for it.
        """
        if not self._to_prepare:
            return self._function.exactly(shape)
        self._num_launches += 1
        known = self._remembered.get(shape)
        if known is None:
            known = self._choose(shape)
        return known

    def given(self, bucket: ShapeBucket) -> Executable:
        """The executable for a bucket that rank 0 has found; as it is if it is not ready."""
        self._num_launches += 1
        return self._ready.get(bucket) or self._function.exactly(bucket)

    def prepare_one(self, bucket: ShapeBucket) -> str:
        """Have the platform prepare a bucket; why it could not, or an empty text."""
        self._prepare(bucket)
        return "" if bucket in self._ready else self._failed[bucket]

    def prepare(self, *, in_background: bool) -> None:
        """Have the platform prepare its buckets, in its order."""
        if not self._to_prepare:
            return
        if in_background:
            _retire_at_exit(weakref.WeakMethod(self.retire))
            self._behind = threading.Thread(
                target=self._prepare_behind, name="prepare", daemon=True
            )
            self._behind.start()
        else:
            self._prepare_all()

    def retire(self) -> None:
        """Prepare no more, and wait for what is being prepared and for the thread that did."""
        self._is_retired = True
        with self._preparing:
            self._ready.clear()
            self._remembered.clear()
        if self._behind is not None:
            self._behind.join()

    def _choose(self, shape: ShapeBucket) -> Executable:
        serving = [bucket for bucket in self._by_size if bucket.serves(shape)]
        ready = [self._ready[bucket] for bucket in serving if bucket in self._ready]
        if serving and serving[0] not in self._ready and serving[0] not in self._failed:
            self._missed = serving[0]
        if ready:
            is_final = ready[0].bucket == next(b for b in serving if b not in self._failed)
            if is_final and len(self._remembered) < _MAX_REMEMBERED:
                self._remembered[shape] = ready[0]
            return ready[0]
        if not self._is_compiled:
            return self._function.exactly(shape)
        for bucket in serving:
            _log.info("A step waits until its shape is compiled: %s", bucket)
            self._prepare(bucket)
            if bucket in self._ready:
                return self._ready[bucket]
        raise EngineError(f"No program could be compiled for a step of {shape}.")

    def _prepare_behind(self) -> None:
        time.sleep(_IDLE_S)  # who asks as soon as the engine is ready does not wait for this
        self._prepare_all()

    def _prepare_all(self) -> None:
        self._platform.activate()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for bucket in progress.track(self._to_prepare, description="Preparing step shapes"):
                if not self._is_compiled:
                    self._prepare_missed()
                if self._is_retired:
                    return
                self._prepare_beside_launches(bucket)
        _log.info("%d of %d step shapes are ready", len(self._ready), len(self._to_prepare))

    def _prepare_missed(self) -> None:
        """While requests run, prepare what they lack; all else waits until they are done."""
        while self._is_busy() and not self._is_retired:
            missed, self._missed = self._missed, None
            if missed is None:
                time.sleep(_IDLE_S)
            else:
                self._prepare_beside_launches(missed)

    def _is_busy(self) -> bool:
        """Whether a step is being launched, or was since this was last asked.

        A long prompt's step may take longer than it takes to ask again; the next one is not to wait
        for a preparation in between.
        """
        before, self._num_seen = self._num_seen, self._num_launches
        is_launching = self._lock is not None and self._lock.locked()
        return is_launching or before != self._num_seen

    def _prepare_beside_launches(self, bucket: ShapeBucket) -> None:
        """Prepare, then leave the device to launches for so long as they are to have it."""
        start_s = time.monotonic()
        self._prepare(bucket)
        took_s = time.monotonic() - start_s
        time.sleep(_PAUSE_S)
        until_s = time.monotonic() + took_s * (1 / _SHARE_BESIDE_LAUNCHES - 1)
        while self._is_busy() and time.monotonic() < until_s and not self._is_retired:
            time.sleep(_IDLE_S)

    @torch.inference_mode()
    def _prepare(self, bucket: ShapeBucket) -> None:
        with self._preparing, self._turn:
            if self._is_retired or bucket in self._ready or bucket in self._failed:
                return
            try:
                wait_for_peers = self._peers.prepare(bucket)
                try:
                    executable = self._made(bucket)
                finally:
                    wait_for_peers()
            except Exception as error:
                self._failed[bucket] = self._tell(bucket, error)
            else:
                self._ready[bucket] = executable

    def _made(self, bucket: ShapeBucket) -> Executable:
        step = self._function.for_bucket(bucket)
        storages = tuple(step.storages.values())
        for storage in storages:
            storage.update(step.padding().arrays)
        executable = self._platform.prepare(step)
        return _Planned(executable, storages) if storages else executable

    def _tell(self, bucket: ShapeBucket, error: Exception) -> str:
        """Log the reason and give it; once each: what fails in one bucket mostly fails in all."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        level = logging.DEBUG if reason in self._told else logging.WARNING
        self._told.add(reason)
        trace = error if _log.isEnabledFor(logging.DEBUG) else None
        _log.log(level, "%s cannot be prepared: %s", bucket, reason, exc_info=trace)
        return reason


def _retire_at_exit(retire: weakref.WeakMethod[Callable[[], None]]) -> None:
    """See that no thread prepares when the interpreter ends: it would abort the process.

    The interpreter unwinds a daemon's stack, and native frames on it do not let that happen.
    """

    def call() -> None:
        alive = retire()
        if alive is not None:
            alive()

    atexit.register(call)


class _Planned:
    """An executable whose attention is planned on the host before each launch."""

    def __init__(self, executable: Executable, storages: Sequence[PlanStorage]) -> None:
        self.bucket = executable.bucket
        self._executable = executable
        self._storages = storages

    def launch(self, host: HostInputs) -> StepOutputs:
        """Plan, then launch."""
        for storage in self._storages:
            storage.update(host.arrays)
        return self._executable.launch(host)


def _size(bucket: ShapeBucket) -> tuple[int, ...]:
    """What makes a bucket dear, most important first."""
    return (
        bucket.num_tokens,
        bucket.num_logit_rows,
        bucket.sampling.bit_count(),
        bucket.max_pages,
        bucket.num_requests - bucket.num_decodes,
    )
