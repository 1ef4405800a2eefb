"""The failure table end to end: a real server process, a real model, a plugin that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.failures.faulty import Faulty
from tests.models.tiny import SHAPE
from tests.server.server_process import (
    START_LIMIT_S,
    ServerProcess,
    eventually,
    watched,
    write_byte_tokenizer,
)

CONFIG = SHAPE | {"vocab_size": 259, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def plugins(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without weights."""
    folder = tmp_path_factory.mktemp("model")
    write_byte_tokenizer(folder)
    config = {"rms_norm_eps": 1e-5, "torch_dtype": "float32"} | CONFIG
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


@pytest.fixture
def server(plugins: Faulty, model: Path) -> Iterator[ServerProcess]:
    """A server on a brittle device, with a faulty provider that takes signals for itself."""
    plugins.order("deaf")
    process = start(plugins, model)
    try:
        with watched(process) as running:
            yield running
    finally:
        process.kill()


def start(plugins: Faulty, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chiplet.cli", "serve", str(model), "--load-format", "dummy"]
    command += ["--max-total-tokens", "512"]
    command += ["--port", "0", "--plugins", "chiplet-faulty", "--plugins", "chiplet-brittle"]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(plugins.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(server: ServerProcess) -> tuple[int, str]:
    body = {"prompt": "Hello", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    response = server.http.post("/v1/completions", json=body)
    answer = response.json()
    text = answer["error"]["message"] if "error" in answer else answer["choices"][0]["text"]
    return response.status_code, text


def health(server: ServerProcess) -> dict[str, Any]:
    return server.http.get("/health").json()


def provider(server: ServerProcess, operation: str) -> str:
    choices = server.http.get("/debug/plan").json()["choices"]
    return next(each["provider"] for each in choices if each["operation"] == operation)


def test_the_server_lives_through_an_exception_and_a_broken_device(
    server: ServerProcess, plugins: Faulty
) -> None:
    engine = server.child("engine").pid
    assert provider(server, "attention/global") == provider(server, "ops/rms_norm") == "faulty"
    status, text = ask(server)
    assert status == 200

    plugins.order("attention")
    assert ask(server) == (500, "RuntimeError: attention was told")
    assert ask(server) == (200, text)
    assert server.child("engine").pid == engine
    assert provider(server, "attention/global") == "reference"
    assert provider(server, "ops/rms_norm") == "faulty"

    plugins.order("ops", "device")
    status, message = ask(server)
    assert status in (500, 503), message
    assert eventually(lambda: health(server)["restarts"] == 1)
    assert eventually(server.is_ready, limit_s=60)
    assert server.child("engine").pid != engine
    assert health(server)["denied"] == ["ops/rms_norm=faulty"]
    assert "the device is lost" in health(server)["events"][-1]
    assert provider(server, "ops/rms_norm") == "reference"
    assert ask(server) == (200, text)


def test_the_server_lives_through_a_segfault_and_faults_that_come_late(
    server: ServerProcess, plugins: Faulty
) -> None:
    status, text = ask(server)
    assert status == 200

    plugins.order("linear", "segfault")
    assert ask(server)[0] == 503
    await_restart(server, 1)
    plugins.forgive()
    event = health(server)["events"][-1]
    assert "signal SIGSEGV" in event
    assert "stack shows linear/" in event
    roles = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
    linear = {f"linear/{role}=faulty" for role in roles}
    assert set(health(server)["denied"]) == linear, "what one source serves is denied together"
    assert provider(server, "linear/o_proj") == "reference"
    assert provider(server, "attention/global") == provider(server, "ops/rms_norm") == "faulty"
    assert ask(server) == (200, text)

    plugins.order("device")
    assert ask(server)[0] in (500, 503)
    await_restart(server, 2)
    assert "the device is lost" in health(server)["events"][-1]
    assert "nobody is suspected for once" in health(server)["events"][-1]
    assert set(health(server)["denied"]) == linear

    plugins.order("device")
    assert ask(server)[0] in (500, 503)
    await_restart(server, 3)
    assert "attention/global=faulty is suspected" in health(server)["events"][-1]
    assert set(health(server)["denied"]) == {*linear, "attention/global=faulty"}
    assert provider(server, "ops/rms_norm") == "faulty"
    assert server.http.get("/debug/plan").json()["device"] == "brittle:0", "the device stays"
    assert ask(server) == (200, text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_served_plugin_is_told_the_end(
    server: ServerProcess, plugins: Faulty, number: signal.Signals
) -> None:
    engine = server.child("engine").pid
    assert ask(server)[0] == 200
    _, errors = server.stop(number)
    assert server.process.returncode == 0, errors
    assert plugins.told() == [f"configure {engine}", f"shutdown {engine}"]
    assert "Traceback" not in errors


def test_a_plugin_is_told_the_end_of_a_start_that_is_cut_short(
    plugins: Faulty, model: Path
) -> None:
    plugins.order("wait")
    process = start(plugins, model)
    try:
        with watched(process, waits=False) as server:
            assert eventually(lambda: plugins.is_waiting, limit_s=START_LIMIT_S)
            # Before it listens, a server ends like a command at Ctrl-C, with another code.
            assert eventually(server.is_alive, limit_s=START_LIMIT_S)
            engine = server.child("engine").pid
            _, errors = server.stop()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert plugins.told() == [f"configure {engine}", f"shutdown {engine}"]
    assert "Traceback" not in errors


def await_restart(server: ServerProcess, number: int) -> None:
    assert eventually(lambda: health(server)["restarts"] == number)
    assert eventually(server.is_ready, limit_s=60)
