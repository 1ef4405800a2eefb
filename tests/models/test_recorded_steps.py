"""Steps that the processor's platform records equal steps that run operation by operation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chiplet.api import HostInputs, Step, StepOutputs
from chiplet.config import DeviceOptions, EngineConfig
from chiplet.plugins import choose_device, discover
from chiplet.sampling_params import SamplingParams
from chiplet_cpu import native
from chiplet_cpu.recording.lane import Lane
from tests.models.test_overlap import KINDS_OF_SAMPLING
from tests.models.tiny import VOCAB_SIZE, Collected, make_checkpoint, run_engine

CPU: Any = choose_device(discover(DeviceOptions()), DeviceOptions(device="cpu")).platform


def _run(
    folder: Path, kinds: list[SamplingParams] = KINDS_OF_SAMPLING * 3, **options: object
) -> list[Collected]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB_SIZE, size).tolist() for size in rng.integers(1, 60, 18)]
    defaults: dict[str, object] = {
        "model": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "max_running_requests": 5,
        "chunked_prefill_size": 32,
        "max_total_tokens": 4096,
        "context_length": 128,
        "prepare_first": True,
    }
    config = EngineConfig.from_options(**(defaults | options))
    return run_engine(config, prompts, kinds)


class Watch:
    """Counts launches of prepared steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_launches = 0
        prepare = type(CPU).prepare

        def watched(platform: Any, step: Step) -> Any:
            return _Counted(prepare(platform, step), self)

        monkeypatch.setattr(type(CPU), "prepare", watched)


class _Counted:
    def __init__(self, executable: Any, watch: Watch) -> None:
        self.bucket = executable.bucket
        self._executable, self._watch = executable, watch

    def launch(self, host: HostInputs) -> StepOutputs:
        self._watch.num_launches += 1
        return self._executable.launch(host)


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
@pytest.mark.parametrize("prepare_first", [True, False])
def test_recorded_steps_equal_eager_ones(
    kind: str, prepare_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(kind, tmp_path)
    expected = _run(tmp_path, eager=True)
    watch = Watch(monkeypatch)
    got = _run(tmp_path, prepare_first=prepare_first, max_total_tokens=256)
    for one, other in zip(got, expected, strict=True):
        assert one.token_ids == other.token_ids
        for ours, theirs in zip(one.outputs, other.outputs, strict=True):
            if ours.logprobs or theirs.logprobs:
                assert [each.logprob for each in ours.logprobs or ()] == pytest.approx(
                    [each.logprob for each in theirs.logprobs or ()], abs=1e-4
                )
    assert watch.num_launches > (20 if prepare_first else 0)


def test_no_shape_of_step_needs_torchs_compiler(tmp_path: Path) -> None:
    # It would come into every server in the middle of its first requests.
    make_checkpoint("mistral", tmp_path)
    code = f"""
import sys
from chiplet.config import EngineConfig
from chiplet.worker import start
start(EngineConfig.from_options(
    model={str(tmp_path)!r}, device="cpu", dtype="float32", context_length=128,
    max_running_requests=3, chunked_prefill_size=32, prepare_first=True, self_check=False,
))
found = sorted({{"torch._dynamo", "torch._inductor", "sympy"}} & set(sys.modules))
assert not found, found
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_steps_that_run_while_python_goes_on_equal_eager_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    make_checkpoint("mistral", tmp_path)
    launched: list[bool] = []
    launch = Lane.launch

    def watched(*given: Any) -> bool:
        launched.append(launch(*given))
        return launched[-1]

    monkeypatch.setattr(Lane, "launch", watched)
    # Alone at first, then among steps that need Python.
    kinds = KINDS_OF_SAMPLING[:3:2] * 6 + KINDS_OF_SAMPLING
    use = ("linear=native",) if native.is_available() else ()
    expected = _run(tmp_path, kinds, eager=True, use=use)
    assert not launched
    got = _run(tmp_path, kinds, use=use)
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]
    assert sum(launched) > 20 or not native.is_available()


def test_a_step_that_cannot_be_recorded_runs_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint("qwen3-moe", tmp_path)
    expected = _run(tmp_path, eager=True)
    caplog.clear()
    got = _run(tmp_path)
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]
    told = [each for each in caplog.records if "cannot be prepared" in each.message]
    assert len(told) == 1
    assert "aten.bincount" in told[0].message
