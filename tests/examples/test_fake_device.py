"""A device of another type, queue and memory than the host's serves models, and core never knew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chiplet.config import DeviceOptions, EngineConfig
from chiplet.errors import PluginError
from chiplet.plugins import choose_device, discover, probe_all
from chiplet.testing.conformance.case import Status, run_case
from chiplet.testing.conformance.suite import all_cases, find_subjects, pair
from chiplet.worker import explain
from tests.examples.conftest import EXAMPLES
from tests.models.test_overlap import KINDS_OF_SAMPLING
from tests.models.tiny import VOCAB_SIZE, make_checkpoint, run_engine
from tests.server.server_process import watched

PROJECT = EXAMPLES / "chiplet-fake"
FAULTS = "CHIPLET_FAKE_FAULTS"


@pytest.fixture
def fake(fake_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in this process."""
    # The modules stay when the path is gone: torch knows a device for as long as the process lives.
    monkeypatch.syspath_prepend(str(fake_site))


def test_the_platform_has_at_most_200_lines() -> None:
    package = PROJECT / "src" / "chiplet_fake"
    sources = [package / f"{name}.py" for name in ("plugin", "platform", "executable")]
    assert sum(len(path.read_text("utf-8").splitlines()) for path in sources) <= 200


def test_its_tests_of_the_hardware_pass(fake_site: Path) -> None:
    pytest_command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_command, str(PROJECT / "tests" / "test_fake_hardware.py")],
        check=False,
        env=os.environ | {"PYTHONPATH": str(fake_site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout)


@pytest.mark.usefixtures("fake")
def test_it_passes_the_kit() -> None:
    # Of attention every twelfth case; `chiplet conformance --device fake` runs them all.
    pairs = list(pair(all_cases(quick=True), find_subjects(DeviceOptions(device="fake"))))
    rare = [each for each in pairs if each[0].family == "attention"]
    chosen = [each for each in pairs if each not in rare] + rare[::12]
    outcomes = [run_case(*each) for each in chosen]
    assert {each.subject.distribution for each in outcomes} == {"chiplet", "chiplet-fake"}
    assert {each.case.id: each.detail for each in outcomes if each.status is Status.FAILED} == {}
    assert sum(each.status is Status.PASSED for each in outcomes) > 130


@pytest.mark.usefixtures("fake")
def test_its_answers_are_those_of_the_reference(tmp_path: Path) -> None:
    make_checkpoint("llama-bias", tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB_SIZE, size).tolist() for size in (1, 20, 3, 7, 33, 12)]

    def answers(device: str) -> list[list[int]]:
        config = EngineConfig.from_options(
            model=str(tmp_path),
            device=device,
            dtype="float32",
            max_running_requests=4,
            page_size=4,
            chunked_prefill_size=9,
            max_total_tokens=96,
            context_length=80,
            prepare_first=True,
        )
        return [each.token_ids for each in run_engine(config, prompts, KINDS_OF_SAMPLING)]

    expected = answers("reference")
    from chiplet_fake.hardware import STREAM

    num_replays = STREAM.num_replays
    assert answers("fake") == expected
    assert STREAM.num_replays > num_replays + 5


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("kind", ["hang", "crash", "raise"])
def test_a_faulty_probe_is_no_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, f"probe={kind}")
    fake = next(each for each in discover(DeviceOptions()).platforms if each.name == "fake")
    # The limit counts for the one that hangs; the others need time to start.
    (result,) = probe_all([fake], time_limit_s=1 if kind == "hang" else 10)
    assert not result.devices
    expected = {"hang": "no answer", "crash": "signal 6", "raise": "told to fail"}
    assert expected[kind] in result.failure


@pytest.mark.usefixtures("fake")
def test_its_memory_is_the_limit() -> None:
    chosen = choose_device(discover(DeviceOptions()), DeviceOptions(device="fake"))
    platform, before = chosen.platform, chosen.platform.memory()
    kept = torch.empty(1 << 20, dtype=torch.int32, device=platform.torch_device)
    assert platform.memory().free_bytes == before.free_bytes - kept.nbytes
    with pytest.raises(torch.OutOfMemoryError, match="fake:0 is out of memory"):
        torch.empty(before.total_bytes, dtype=torch.int8, device=platform.torch_device)
    del kept
    assert platform.memory() == before


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("faults", "reason"),
    [("assess=raise", "assess raised"), ("build=raise", "build raised"), ("run=wrong", "differs")],
)
def test_a_broken_provider_is_passed_over(
    faults: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chiplet_fake.faults import Faults

    monkeypatch.setattr("chiplet_fake.plugin.FAULTS", Faults.parse(faults))
    make_checkpoint("llama-bias", tmp_path)
    plan = explain(EngineConfig.from_options(model=str(tmp_path), device="fake"))
    choice = next(each for each in plan.choices if each.operation == "linear/o_proj")
    assert [each.provider for each in choice.servers] == ["reference"]
    (rejection,) = choice.rejections
    assert rejection.provider == "fake-broken"
    assert reason in rejection.reasons[0]


@pytest.mark.model
def test_the_demo_model_is_served(fake_site: Path) -> None:
    flags = {
        "--device": "fake",
        "--port": "0",
        "--context-length": "128",
        "--max-running-requests": "4",
        "--chunked-prefill-size": "32",
        "--max-total-tokens": "512",
    }
    words = [word for pair in flags.items() for word in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "chiplet.cli", "serve", "smollm2-135m", *words],
        env=os.environ | {"PYTHONPATH": str(fake_site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with watched(process) as server:
        answer = server.openai.completions.create(
            model="smollm2-135m", prompt="The capital of France is", max_tokens=3, temperature=0
        )
        assert answer.choices[0].text.startswith(" Paris")


@pytest.mark.usefixtures("fake")
def test_its_memory_is_an_option() -> None:
    try:
        options = DeviceOptions(device="fake", plugin_option=("chiplet-fake.memory_mib=64",))
        chosen = choose_device(discover(options), options)
        # The probe's process was told too.
        assert chosen.probe.total_memory_bytes == 64 << 20
        assert chosen.platform.memory().total_bytes == 64 << 20
        with pytest.raises(PluginError, match="memory_mib is 'all'; allowed: a number of MiB"):
            discover(DeviceOptions(plugin_option=("chiplet-fake.memory_mib=all",)))
    finally:
        discover(DeviceOptions(plugin_option=("chiplet-fake.memory_mib=4096",)))
