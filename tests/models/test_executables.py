"""Steps replayed on fixed buffers, with padding, give what exact steps give."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chiplet.api import (
    AttentionRequest,
    Executable,
    Execution,
    ForwardBatch,
    HostInputs,
    KvLayout,
    PlanStorage,
    ShapeBucket,
    Step,
    StepInputs,
    StepLimits,
    StepOutputs,
)
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import ConfigError
from chiplet.plugins import choose_device, discover
from chiplet.reference.attention import PlainAttention, ReferenceAttention
from chiplet.reference.platform import ReferencePlatform
from chiplet.runner.executables import Executables
from chiplet.runner.reachable import reachable_tensors
from chiplet.runner.runner import LaunchedStep
from chiplet.scheduler.scheduler import Scheduler
from chiplet.testing.replayed_step import ReplayedStep, few_buckets
from chiplet.worker import start
from tests.models.test_overlap import KINDS_OF_SAMPLING
from tests.models.tiny import VOCAB_SIZE, Collected, make_checkpoint, run_engine


@pytest.fixture(scope="module", params=["llama-bias", "mistral-window", "qwen3-moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, folder)
    return folder


def _config(folder: Path, **options: object) -> EngineConfig:
    defaults = {
        "model": str(folder),
        "device": "reference",
        "dtype": "float32",
        "max_running_requests": 4,
        "page_size": 4,
        "chunked_prefill_size": 9,
        "max_total_tokens": 4096,
        "context_length": 80,
        "prepare_first": True,
    }
    return EngineConfig.from_options(**(defaults | options))


def _run(config: EngineConfig) -> list[Collected]:
    rng = np.random.default_rng(0)
    shared = rng.integers(2, VOCAB_SIZE, 9).tolist()
    prompts = [rng.integers(2, VOCAB_SIZE, size).tolist() for size in (1, 20, 3, 7, 33, 12)]
    prompts += [shared + prompt for prompt in prompts]
    return run_engine(config, prompts, KINDS_OF_SAMPLING * 2)


def _assert_same(got: Sequence[Collected], expected: Sequence[Collected]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.token_ids == other.token_ids
        for name in ("logprobs", "prompt_logprobs"):
            ours = [each.logprob for out in one.outputs for each in getattr(out, name) or ()]
            theirs = [each.logprob for out in other.outputs for each in getattr(out, name) or ()]
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


class Prepared:
    """Replaces the reference platform's preparation, and keeps what it made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, execution: Execution) -> None:
        self.steps: list[ReplayedStep] = []
        monkeypatch.setattr(ReferencePlatform, "execution", execution)
        monkeypatch.setattr(ReferencePlatform, "buckets", lambda _, limits: self.buckets(limits))
        monkeypatch.setattr(ReferencePlatform, "prepare", lambda _, step: self.prepare(step))

    def buckets(self, limits: StepLimits) -> Sequence[ShapeBucket]:
        return few_buckets(limits)

    def prepare(self, step: Step) -> Executable:
        self.steps.append(ReplayedStep(step))
        return self.steps[-1]


@pytest.mark.parametrize("execution", list(Execution))
def test_replayed_steps_equal_exact_ones(
    folder: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(_config(folder))
    monkeypatch.setattr("chiplet.worker.Scheduler", partial(Scheduler, headroom_tokens=0))
    monkeypatch.setattr(LaunchedStep, "is_done", lambda self: False)
    prepared = Prepared(monkeypatch, execution)
    # So few pages that requests are retracted; and every token is fed on the device.
    _assert_same(_run(_config(folder, max_total_tokens=96)), expected)
    assert len(prepared.steps) == 2
    assert all(step.num_launches > 5 for step in prepared.steps)


def test_steps_run_while_shapes_are_prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _run(_config(folder))
    # Compiling runs beside launches, which this fake's recorder cannot.
    Prepared(monkeypatch, Execution.OP)
    _assert_same(_run(_config(folder, prepare_first=False)), expected)


class RepeatedStep:
    """Runs the step again on the same buffer, for kernels that read lengths on the host."""

    def __init__(self, step: Step) -> None:
        self.bucket = step.bucket
        self._step = step
        self._inputs = torch.from_numpy(step.padding().buffer.copy())

    def launch(self, host: HostInputs) -> StepOutputs:
        self._inputs.copy_(torch.from_numpy(host.buffer))
        inputs = self._step.layout.split(self._inputs, torch.float32)
        return self._step(inputs, self._step.state)


def test_kernels_of_the_host_serve_padding_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(_config(folder, device="cpu"))
    launched: list[ShapeBucket] = []

    def prepare(platform: object, step: Step) -> Executable:
        launched.append(step.bucket)
        return RepeatedStep(step)

    cpu = type(choose_device(discover(DeviceOptions()), DeviceOptions(device="cpu")).platform)
    monkeypatch.setattr(cpu, "buckets", lambda _, limits: few_buckets(limits))
    monkeypatch.setattr(cpu, "prepare", prepare)
    _assert_same(_run(_config(folder, device="cpu")), expected)
    assert len(launched) == 2


def test_a_shape_that_cannot_be_prepared_runs_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _run(_config(folder))
    prepared = Prepared(monkeypatch, Execution.OP)

    def refuse(step: Step) -> Executable:
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(prepared, "prepare", refuse)
    _assert_same(_run(_config(folder)), expected)
    (told,) = [each for each in caplog.records if "cannot be prepared" in each.getMessage()]
    assert told.getMessage().endswith("cannot be prepared: RuntimeError: no room at all")
    assert told.exc_info is None, "the traceback is for those who ask for it"


def test_a_compiled_device_refuses_what_it_cannot_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = Prepared(monkeypatch, Execution.STEP)
    with pytest.raises(ConfigError, match="compiled whole"):
        start(_config(folder, eager=True))
    monkeypatch.setattr(prepared, "buckets", lambda limits: few_buckets(limits)[:1])
    with pytest.raises(ConfigError, match="no bucket for the largest step"):
        start(_config(folder))


def test_constants_are_every_weight_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Step] = []
    prepared = Prepared(monkeypatch, Execution.OP)

    def keep(step: Step) -> Executable:
        found.append(step)
        return step

    monkeypatch.setattr(prepared, "prepare", keep)
    start(_config(folder))
    constants = found[0].constants()
    assert len({id(each) for each in constants}) == len(constants)
    state = {id(each) for each in (*found[0].state.kv, *found[0].state[1:])}
    assert not state & {id(each) for each in constants}
    saved = load_file(folder / "model.safetensors").values()
    num_weights = sum(each.numel() for each in saved)
    rope_table, scalars = 80 * 16, 8  # at most
    total = sum(each.numel() for each in constants)
    assert num_weights < total <= num_weights + rope_table + scalars


class HostPlanned(PlainAttention):
    """Plans on the host, as implementations do whose kernels need a schedule of their own."""

    def __init__(self, request: AttentionRequest) -> None:
        super().__init__(request)
        self.storages: list[Storage] = []

    def plan_storage(self, bucket: ShapeBucket, layout: KvLayout) -> PlanStorage:
        self.storages.append(Storage(self, bucket, layout))
        return self.storages[-1]


class Storage:
    def __init__(self, impl: HostPlanned, bucket: ShapeBucket, layout: KvLayout) -> None:
        self.plan: Any = None
        self.num_updates = 0
        self._make = partial(PlainAttention.plan, impl, layout=layout)
        self._bucket = bucket

    def update(self, host: StepInputs[Any]) -> None:
        self.num_updates += 1
        names = ("token_ids", "positions", "kv_rows", "query_starts", "kv_lengths", "page_table")
        tensors = {name: torch.from_numpy(getattr(host, name)) for name in names}
        plan = self._make(
            ForwardBatch(
                num_decodes=self._bucket.num_decodes,
                logit_rows=torch.from_numpy(host.logit_rows),
                lengths_host=None,
                **tensors,
            )
        )
        if self.plan is None:
            self.plan = copy.deepcopy(plan)
        for ours, new in zip(reachable_tensors(self.plan), reachable_tensors(plan), strict=True):
            ours.copy_(new)


def test_plans_made_on_the_host_reach_a_replayed_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(_config(folder))
    impls: list[HostPlanned] = []

    def build(self: ReferenceAttention, request: AttentionRequest, context: object) -> HostPlanned:
        impls.append(HostPlanned(request))
        return impls[-1]

    monkeypatch.setattr(ReferenceAttention, "build", build)
    prepared = Prepared(monkeypatch, Execution.OP)
    _assert_same(_run(_config(folder)), expected)
    storages = [storage for impl in impls for storage in impl.storages]
    launches = [step.num_launches for step in prepared.steps]
    # Once before the step is recorded, and before each launch.
    assert sorted(storage.num_updates - 1 for storage in storages) == sorted(launches)
    assert len(storages) == 2
    Prepared(monkeypatch, Execution.STEP)
    with pytest.raises(ConfigError, match="planned on the host"):
        start(_config(folder))


_EXITING = """
import sys, threading, time
from chiplet.config import EngineConfig
from chiplet.reference.platform import ReferencePlatform
from chiplet.runner import executables
from chiplet.testing.replayed_step import few_buckets
from chiplet.worker import start

has_begun = threading.Event()

def prepare(platform, step):
    print("begun", flush=True)
    has_begun.set()
    time.sleep(0.5)
    print("ended", flush=True)

def prepare_all(self, really=executables.Executables._prepare_all):
    really(self)
    print("over", flush=True)

executables._PAUSE_S = 0.3
executables.Executables._prepare_all = prepare_all
ReferencePlatform.buckets = lambda platform, limits: few_buckets(limits)
ReferencePlatform.prepare = prepare
start(EngineConfig.from_options(
    model=sys.argv[1], device="reference", max_total_tokens=256, context_length=80
))
has_begun.wait()
"""


def test_a_program_ends_when_its_thread_has_prepared_and_not_before(tmp_path: Path) -> None:
    make_checkpoint("llama-tied", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _EXITING, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["begun", "ended", "over"]


def test_a_missed_shape_is_prepared_first_and_launches_get_most_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("llama-tied", tmp_path)
    order: list[ShapeBucket] = []
    monkeypatch.setattr(ReferencePlatform, "buckets", lambda _, limits: few_buckets(limits))
    monkeypatch.setattr(Executables, "_prepare_behind", lambda self: None)
    engine, _ = start(_config(tmp_path, prepare_first=False))
    known: Executables = engine._runner._executables
    decode, whole = known._to_prepare

    def prepare(_: ReferencePlatform, step: Step) -> Executable:
        order.append(step.bucket)
        known.find(decode)  # a launch beside each preparation
        time.sleep(0.03)
        return ReplayedStep(step)

    monkeypatch.setattr(ReferencePlatform, "prepare", prepare)
    known.find(whole)
    begin_s = time.monotonic()
    known._prepare_all()
    assert order == [whole, decode]
    assert time.monotonic() - begin_s > 2 * (0.03 + 0.1)


def test_what_nobody_lacks_is_prepared_when_nobody_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("llama-tied", tmp_path)
    seen: list[ShapeBucket | str] = []
    monkeypatch.setattr(ReferencePlatform, "buckets", lambda _, limits: few_buckets(limits))
    monkeypatch.setattr(Executables, "_prepare_behind", lambda self: None)
    engine, _ = start(_config(tmp_path, prepare_first=False))
    known: Executables = engine._runner._executables
    decode, whole = known._to_prepare
    answers = iter(["busy", "busy", "idle"])

    def prepare(_: ReferencePlatform, step: Step) -> Executable:
        seen.append(step.bucket)
        return ReplayedStep(step)

    def is_busy(_: Executables) -> bool:
        seen.append(next(answers, "idle"))
        return seen[-1] == "busy"

    monkeypatch.setattr(ReferencePlatform, "prepare", prepare)
    monkeypatch.setattr(Executables, "_is_busy", is_busy)
    monkeypatch.setattr("chiplet.runner.executables._IDLE_S", 0.0)
    known.find(whole)
    known._prepare_all()
    assert seen[:2] == ["busy", whole]
    assert seen.index("idle") < seen.index(decode)


def test_a_launch_that_takes_long_is_no_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("llama-tied", tmp_path)
    monkeypatch.setattr(ReferencePlatform, "buckets", lambda _, limits: few_buckets(limits))
    monkeypatch.setattr(Executables, "_prepare_behind", lambda self: None)
    engine, _ = start(_config(tmp_path, prepare_first=False))
    known: Executables = engine._runner._executables
    with known.launching():
        assert [known._is_busy() for _ in range(3)] == [True] * 3
    assert not known._is_busy()
